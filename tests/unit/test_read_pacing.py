"""How much is read in a turn, on a loop of the test's own."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from chatd.core.read_pacing import FRAME_COST, Intake

BUDGET = 64 * FRAME_COST
SLICE = 4  # frames of one connection in a turn


class Loop:
    """`turn` runs what was called for it, as a loop does: what is called meanwhile comes in the
    next one.
    """

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.intake = Intake(BUDGET, self.soon.append)
        self.read: list[tuple[str, int]] = []  # of the last turn: whose frames, how many

    def turn(self) -> None:
        self.read = []
        soon, self.soon[:] = list(self.soon), []
        for call in soon:
            call()

    def take(self, name: str, frames: int) -> None:
        self.read.append((name, frames))
        self.intake.left -= FRAME_COST * frames
        if self.intake.left < self.intake.low:
            self.intake.renew()


class Flood:
    """A connection with so many frames to be read."""

    def __init__(self, loop: Loop, name: str, frames: int) -> None:
        self.loop, self.name, self.frames = loop, name, frames

    def take_slice(self) -> bool:
        n = min(self.frames, SLICE)
        self.frames -= n
        self.loop.take(self.name, n)
        return self.frames > 0


def test_a_turn_takes_no_more_than_the_budget() -> None:
    loop = Loop()
    for n in range(100):
        loop.intake.put_off(Flood(loop, str(n), 40))
    for _ in range(50):
        loop.turn()
        ring = sum(frames for _, frames in loop.read)
        assert 0 < ring <= BUDGET // FRAME_COST // 2 + SLICE, "half of it, and what the last slice took"
        while loop.intake.left >= 0:  # what comes fresh takes all the rest
            loop.take("fresh", 1)
        assert sum(frames for _, frames in loop.read) <= BUDGET // FRAME_COST + SLICE


def test_each_connection_has_a_slice_before_any_has_a_second() -> None:
    loop = Loop()
    names = [str(n) for n in range(20)]
    for name in names:
        loop.intake.put_off(Flood(loop, name, 3 * SLICE))
    order: list[str] = []
    while len(loop.intake):
        loop.turn()
        order += [name for name, _ in loop.read]
    assert order == 3 * names


def test_one_connection_takes_a_slice_a_turn_however_much_is_left() -> None:
    loop = Loop()
    loop.intake.put_off(Flood(loop, "a", 3 * SLICE))
    turns = 0
    while len(loop.intake):
        loop.turn()
        turns += 1
    assert turns == 3
    assert loop.soon == [], "nothing is called once nothing waits"


@given(st.lists(st.lists(st.integers(1, 30), max_size=8), max_size=30))
def test_fresh_frames_find_half_of_the_budget_in_every_turn(turns: list[list[int]]) -> None:
    loop = Loop()
    loop.intake.put_off(Flood(loop, "flood", 10_000))
    for fresh in turns:
        loop.turn()
        assert loop.intake.left >= BUDGET // 2 - SLICE * FRAME_COST
        for frames in fresh:
            if loop.intake.left >= 0:
                loop.take("fresh", frames)


def test_a_light_load_renews_the_budget_once_it_is_half_used() -> None:
    loop, called = Loop(), 0
    for _ in range(BUDGET // FRAME_COST):
        loop.take("fresh", 1)
        called += len(loop.soon)
        loop.turn()
    assert 1 <= called <= 2
