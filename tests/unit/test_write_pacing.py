"""When output leaves, on a clock and a loop of the test's own."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.core.write_pacing import BUSY_TURN_S, DELAY_MAX_S, TICK_S, Flusher


class Loop:
    """A turn of `turn` takes as long as it says; timers run between turns."""

    def __init__(self) -> None:
        self.now = 100.0
        self.soon: list[Callable[[], None]] = []
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self.flusher = Flusher(self.soon.append, self.call_later, lambda: self.now)

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (self.now + delay, next(self._numbers), call))

    def turn(self, took_s: float, *outputs: Output) -> None:
        for output in outputs:
            output.send(self)
        self.now += took_s
        soon, self.soon[:] = list(self.soon), []
        for call in soon:
            call()
        self.run_timers()

    def run_timers(self) -> None:
        while self.timers and self.timers[0][0] <= self.now:
            heapq.heappop(self.timers)[2]()

    def rest(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timers and self.timers[0][0] <= end:
            self.now = max(self.now, self.timers[0][0])
            self.run_timers()
        self.now = end


class Output:
    """As a connection: it adds itself with the first frame only."""

    def __init__(self) -> None:
        self.waits: list[float] = []  # since when
        self.writes: list[list[float]] = []  # how long each frame of a write had waited

    def send(self, loop: Loop) -> None:
        self.loop = loop
        if not self.waits:
            loop.flusher.add(self)
        self.waits.append(loop.now)

    def flush(self) -> None:
        self.writes.append([self.loop.now - since for since in self.waits])
        self.waits = []


@pytest.fixture
def loop() -> Loop:
    return Loop()


def busy(loop: Loop) -> None:
    """Until output is held back, and a bit longer."""
    for _ in range(50):
        loop.turn(2 * BUSY_TURN_S, Output())
    assert loop.flusher.delay_s > 0


def test_output_leaves_at_the_end_of_a_short_turn(loop: Loop) -> None:
    a, b = Output(), Output()
    loop.turn(BUSY_TURN_S / 2, a, a, b)
    assert [len(w) for w in a.writes] == [2]
    assert [len(w) for w in b.writes] == [1]
    loop.turn(BUSY_TURN_S / 2, a)
    assert [len(w) for w in a.writes] == [2, 1]
    assert not loop.timers


def test_output_of_long_turns_waits_and_leaves_together(loop: Loop) -> None:
    busy(loop)
    one = Output()
    for _ in range(2):
        loop.turn(2 * BUSY_TURN_S, one)
    assert one.writes == []
    loop.rest(DELAY_MAX_S)
    assert [len(w) for w in one.writes] == [2]


def test_it_leaves_by_a_timer_if_no_turn_follows(loop: Loop) -> None:
    busy(loop)
    last = Output()
    loop.turn(2 * BUSY_TURN_S, last)
    delay = loop.flusher.delay_s
    loop.rest(1)
    assert delay <= last.writes[0][0] <= DELAY_MAX_S + 2 * BUSY_TURN_S + 2 * TICK_S
    assert not loop.timers


def test_the_more_turns_take_the_longer_it_waits_up_to_a_bound(loop: Loop) -> None:
    delays = []
    for factor in (1, 1.2, 2, 5, 50):
        loop.flusher.average_s = BUSY_TURN_S * factor
        delays.append(loop.flusher.delay_s)
    assert delays == sorted(delays)
    assert (delays[0], delays[-1]) == (0, DELAY_MAX_S)
    assert delays[1] < DELAY_MAX_S / 5, "no jump where it begins"


def test_one_long_turn_holds_nothing_back(loop: Loop) -> None:
    for _ in range(20):
        loop.turn(BUSY_TURN_S / 20, Output())
    loop.turn(200 * BUSY_TURN_S, Output())
    after = Output()
    loop.turn(BUSY_TURN_S / 20, after)
    assert len(after.writes) == 1


def test_what_fails_to_leave_keeps_nobody_back(loop: Loop) -> None:
    class Broken(Output):
        def flush(self) -> None:
            raise RuntimeError

    busy(loop)
    loop.rest(DELAY_MAX_S)
    busy(loop)
    last = Output()
    loop.turn(BUSY_TURN_S, Broken())
    loop.turn(BUSY_TURN_S, last)
    with pytest.raises(RuntimeError):
        loop.rest(1)
    loop.rest(1)
    assert len(last.writes) == 1


def test_after_a_rest_it_is_not_behind_any_more(loop: Loop) -> None:
    busy(loop)
    loop.rest(2 * DELAY_MAX_S)
    assert loop.flusher.turn_s == 0
    after = Output()
    loop.turn(BUSY_TURN_S / 20, after)
    assert len(after.writes) == 1


def test_short_turns_end_it_too(loop: Loop) -> None:
    busy(loop)
    for _ in range(20):
        loop.turn(BUSY_TURN_S / 20, Output())
    assert loop.flusher.delay_s == 0


steps = st.lists(
    st.tuples(st.floats(0, 0.03), st.lists(st.integers(0, 4), max_size=6), st.floats(0, 0.06)), max_size=40
)


@given(steps)
def test_all_of_it_leaves_in_time_whatever_turns_do(steps: list[tuple[float, list[int], float]]) -> None:
    loop, outputs, sent = Loop(), [Output() for _ in range(5)], 0
    longest = max((took for took, _, _ in steps), default=0.0)
    for took, chosen, rest in steps:
        loop.turn(took, *(outputs[n] for n in chosen))
        sent += len(chosen)
        loop.rest(rest)
    loop.rest(1)
    writes = [write for output in outputs for write in output.writes]
    assert sum(map(len, writes)) == sent
    assert all(writes), "nothing is flushed without a frame"
    # Its own turn, the delay, and what runs when the delay is over.
    assert all(waited <= 2 * longest + DELAY_MAX_S + 2 * TICK_S + 1e-9 for write in writes for waited in write)
    assert not loop.timers
    assert not loop.soon
