"""A task that a library kept the cancellation from ends all the same."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from chatd.loop import ending


async def test_all_have_ended_also_those_that_lost_a_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "AGAIN_S", 0.01)
    begun = asyncio.Event()

    async def deaf(times: int) -> None:
        for _ in range(times):
            begun.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        await asyncio.Event().wait()

    async def fails() -> None:
        raise ValueError

    tasks = [asyncio.create_task(deaf(n)) for n in range(3)] + [asyncio.create_task(fails())]
    await begun.wait()
    async with asyncio.timeout(15):
        await ending.cancelled(tasks)
    assert all(task.done() for task in tasks)
    await ending.cancelled(tasks)
    await ending.cancelled(())
