"""`until` of the tests: gives what was true, misses no event, and its error says what did not
hold.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.until import TURNS, Late, blocking_until, until

NEVER: list[int] = []


async def test_it_gives_what_was_true_at_last() -> None:
    answers = iter([*[""] * (TURNS + 3), "yes"])
    assert await until(lambda: next(answers)) == "yes"


async def test_a_coroutine_function_may_ask() -> None:
    answers = iter([0, 0, 7])

    async def ask() -> int:
        await asyncio.sleep(0)
        return next(answers)

    assert await until(ask) == 7


async def test_with_an_event_it_asks_once_a_change() -> None:
    changed, asked, goal = asyncio.Event(), 0, asyncio.Event()

    def holds() -> bool:
        nonlocal asked
        asked += 1
        return goal.is_set()

    waiting = asyncio.create_task(until(holds, changed=changed))
    for n in range(1, 4):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert asked == n
        changed.set()
    goal.set()
    assert await waiting is True


async def test_too_late_names_the_text_or_the_source() -> None:
    with pytest.raises(Late, match=r"not within 0 s: the cows come home"):
        await until(lambda: NEVER, "the cows come home", 0)
    with pytest.raises(Late, match=r"lambda: NEVER"):
        await until(lambda: NEVER, within_s=0)
    with pytest.raises(Late, match=r"3 cows"):
        await until(lambda: NEVER, lambda: f"{3} cows", 0, changed=asyncio.Event())
    with pytest.raises(Late, match=r"lambda: NEVER"):
        blocking_until(lambda: NEVER, within_s=0)


async def test_a_timeout_of_the_condition_is_its_own() -> None:
    async def ask() -> bool:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await until(ask)


def test_blocking_gives_what_was_true() -> None:
    answers = iter([0, 0, 7])
    assert blocking_until(lambda: next(answers)) == 7
