"""A call within a deadline: what it gives, and what becomes of it after that."""

from __future__ import annotations

import asyncio

import pytest

from chatd.loop.deadline import READ_TURNS, within


async def test_its_result_and_its_error_are_given() -> None:
    async def answers() -> int:
        return 7

    async def fails() -> int:
        raise ValueError("x")

    assert await within(60.0, answers()) == 7
    with pytest.raises(ValueError, match="x"):
        await within(60.0, fails())


async def test_a_result_that_takes_some_turns_past_the_deadline_counts() -> None:
    async def after(turns: int) -> str:
        for _ in range(turns):
            await asyncio.sleep(0)
        return "in time"

    assert await within(0.0, after(READ_TURNS)) == "in time"
    with pytest.raises(TimeoutError):
        await within(0.0, after(READ_TURNS + 10))


async def test_a_call_given_up_is_cancelled_and_its_end_is_not_waited_for() -> None:
    cancelled, finish = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
            await finish.wait()
            raise ValueError("in the end")

    with pytest.raises(TimeoutError):
        await within(0.001, stubborn())
    assert not finish.is_set()
    await cancelled.wait()
    finish.set()


async def test_a_caller_that_is_cancelled_cancels_the_call() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def call() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    caller = asyncio.create_task(within(60.0, call()))
    await began.wait()
    caller.cancel()
    await ended.wait()
    await asyncio.gather(caller, return_exceptions=True)
    assert caller.cancelled()
