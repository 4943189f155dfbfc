"""The tasks of a node: which ends make it fail, and what is left after its stop."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from chatd.errors import ChatdError
from chatd.loop.tasks import Tasks


async def ends() -> None:
    await asyncio.sleep(0)


async def fails() -> None:
    await asyncio.sleep(0)
    raise ValueError("a bug")


async def stays() -> None:
    await asyncio.Event().wait()


async def test_short_work_that_ends_is_forgotten_and_fails_nobody() -> None:
    tasks = Tasks()
    await tasks.spawn(ends())
    await asyncio.sleep(0)
    assert not tasks.spawned
    assert not tasks.failed.done()


async def test_short_work_that_raises_fails_the_node() -> None:
    tasks = Tasks()
    with capture_logs() as lines:
        tasks.spawn(fails())
        with pytest.raises(ValueError, match="a bug"):
            await tasks.failed
    assert [(line["event"], line["task"]) for line in lines] == [("task.died", "task")]


async def test_a_watched_task_that_ends_fails_the_node_by_its_name() -> None:
    tasks = Tasks()
    with capture_logs():
        tasks.watch("sweep", ends())
        with pytest.raises(ChatdError, match="sweep ended"):
            await tasks.failed


async def test_of_several_errors_the_first_stays() -> None:
    tasks = Tasks()
    with capture_logs():
        tasks.watch("first", fails())
        tasks.watch("second", ends())
        await asyncio.wait(tasks.watched.values())
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="a bug"):
            await tasks.failed


async def test_cancelled_tasks_have_ended_and_fail_nobody() -> None:
    tasks = Tasks()
    spawned = tasks.spawn(stays())
    tasks.watch("tick", stays())
    await tasks.cancel()
    assert spawned.cancelled()
    assert tasks.watched["tick"].cancelled()
    assert not tasks.failed.done()
