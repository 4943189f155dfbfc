"""Turns: one user after another, so many at a time, and a bound on those that wait."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from typing import Final

import pytest

from chatd import errors
from chatd.ids import UserId
from chatd.postgres.fair_queue import Turns
from tests.until import until

GREEDY: Final = UserId("greedy")
HONEST: Final = UserId("honest")


class Crowd:
    """Tasks that take a turn each; `served` has who got one, in order."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.served: list[UserId] = []
        self.refused: list[UserId] = []
        self.most: Counter[UserId] = Counter()
        self._now: Counter[UserId] = Counter()
        self._go_on = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(self, user: UserId, times: int = 1) -> None:
        """Ask, and wait until those have asked."""
        self.tasks += [asyncio.create_task(self._take(user)) for _ in range(times)]
        await asyncio.sleep(0)

    async def _take(self, user: UserId) -> None:
        try:
            async with self.turns.turn(user):
                self.served.append(user)
                self._now[user] += 1
                self.most[user] = max(self.most[user], self._now[user])
                await self._go_on.wait()
                await asyncio.sleep(0)
                self._now[user] -= 1
        except errors.Overloaded:
            self.refused.append(user)

    async def done(self) -> None:
        self._go_on.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert (self.turns.running, self.turns.waiting, self.turns._queues, self.turns._ring) == (0, 0, {}, {})


async def test_one_who_asks_once_is_next_however_often_another_asks() -> None:
    crowd = Crowd(Turns(1, of_one=1, waiting_max=100))
    await crowd.ask(GREEDY, 20)
    await crowd.ask(HONEST)
    await crowd.done()
    assert crowd.served.index(HONEST) <= 2, "behind the one under way and the one before it in the ring"
    assert len(crowd.served) == 21


async def test_one_user_has_no_more_at_once_than_is_for_one() -> None:
    crowd = Crowd(Turns(4, of_one=2, waiting_max=100))
    await crowd.ask(GREEDY, 10)
    assert (crowd.turns.running, crowd.turns.waiting) == (2, 8)
    await crowd.ask(HONEST)
    assert crowd.served[-1] == HONEST, "there was room for others all along"
    await crowd.done()
    assert crowd.most[GREEDY] == 2


async def test_past_the_bound_the_one_who_waits_most_often_loses_its_newest() -> None:
    crowd = Crowd(Turns(1, of_one=1, waiting_max=5))
    await crowd.ask(GREEDY, 6)
    await crowd.ask(GREEDY)
    assert crowd.refused == [GREEDY]
    await crowd.ask(HONEST)
    await asyncio.sleep(0)
    assert crowd.refused == [GREEDY, GREEDY]
    assert crowd.turns.waiting == 5
    await crowd.done()
    assert Counter(crowd.served) == {GREEDY: 5, HONEST: 1}


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_is_cancelled_leaves_nothing_behind(seed: int) -> None:
    """Also in the loop turn in which its turn comes."""
    rng = random.Random(seed)
    crowd = Crowd(Turns(2, of_one=1, waiting_max=8))
    users = [UserId(f"u{n}") for n in range(4)]
    for _ in range(60):
        match rng.randrange(4):
            case 0:
                await asyncio.sleep(0)
            case 1 if crowd.tasks:
                rng.choice(crowd.tasks).cancel()
            case 2:
                crowd._go_on.set()
                crowd._go_on = asyncio.Event()
            case _:
                await crowd.ask(rng.choice(users))
        assert crowd.turns.running <= 2
        assert crowd.turns.waiting <= 8
    await crowd.done()


async def test_a_request_that_finds_no_room_costs_the_same_however_many_users_wait() -> None:
    async def calls(users: int) -> int:
        turns = Turns(1, 1, users)
        waiting = [asyncio.create_task(one_turn(turns, UserId(f"u{n}"))) for n in range(users + 1)]
        await until(lambda: turns.waiting == users)
        seen = 0

        def count(*_: object) -> None:
            nonlocal seen
            seen += 1

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            with pytest.raises(errors.Overloaded):
                await turns._wait(UserId("late"))
        finally:
            sys.setprofile(before)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (turns.waiting, turns.running, turns._longest) == (0, 0, 0)
        return seen

    assert await calls(1_000) == await calls(10)


async def one_turn(turns: Turns, user: UserId) -> None:
    async with turns.turn(user):
        await asyncio.Event().wait()
