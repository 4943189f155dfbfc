"""What is written behind is written once, kept over failures, and nobody waits for more than one failure."""

from __future__ import annotations

import asyncio

import pytest

from chatd.behind import Behind


class Away(Exception):
    """The database is."""


async def test_all_who_wait_for_a_flush_that_fails_get_its_error() -> None:
    """If each of them tried in turn, the last of a hundred would wait for a hundred timeouts."""
    go_on = asyncio.Event()
    writes = 0

    async def write(values: dict[str, int]) -> None:
        nonlocal writes
        writes += 1
        await go_on.wait()
        raise Away

    behind: Behind[str, int] = Behind(write)
    behind.put("a", 1)
    flushes = [asyncio.create_task(behind.flush()) for _ in range(100)]
    await asyncio.sleep(0)
    go_on.set()
    results = await asyncio.gather(*flushes, return_exceptions=True)
    assert {type(r) for r in results} == {Away}
    assert (writes, len(behind)) == (1, 1)


async def test_what_changed_during_a_flush_that_failed_is_newer_than_what_it_took() -> None:
    go_on = asyncio.Event()
    written: list[dict[str, int]] = []

    async def write(values: dict[str, int]) -> None:
        if not go_on.is_set():
            await go_on.wait()
            raise Away
        written.append(values)

    behind: Behind[str, int] = Behind(write)
    behind.put("a", 1)
    behind.put("b", 1)
    flush = asyncio.create_task(behind.flush())
    await asyncio.sleep(0)
    behind.put("a", 2)
    go_on.set()
    with pytest.raises(Away):
        await flush
    await behind.flush()
    assert written == [{"a": 2, "b": 1}]


async def test_a_cancelled_flush_loses_nothing_and_fails_nobody() -> None:
    started, written = asyncio.Event(), []

    async def write(values: dict[str, int]) -> None:
        if not started.is_set():
            started.set()
            await asyncio.Event().wait()
        written.append(values)

    behind: Behind[str, int] = Behind(write)
    behind.put("a", 1)
    flush = asyncio.create_task(behind.flush())
    await started.wait()
    other = asyncio.create_task(behind.flush())
    await asyncio.sleep(0)
    flush.cancel()
    await other
    assert (written, len(behind)) == ([{"a": 1}], 0)
