"""What is written behind is written once, kept over failures, and nobody waits for more than one
failure.
"""

from __future__ import annotations

import asyncio

import pytest

from chatd.postgres.write_behind import WriteBehind


class Away(Exception):
    """The database is."""


async def test_all_who_wait_for_a_flush_that_fails_get_its_error() -> None:
    """If each of them tried in turn, the last of a hundred would wait for a hundred timeouts."""
    go_on = asyncio.Event()
    writes = 0

    async def write(values: dict[str, int]) -> list[str]:
        nonlocal writes
        writes += 1
        await go_on.wait()
        raise Away

    behind: WriteBehind[str, int] = WriteBehind(write)
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

    async def write(values: dict[str, int]) -> list[str]:
        if not go_on.is_set():
            await go_on.wait()
            raise Away
        written.append(values)
        return []

    behind: WriteBehind[str, int] = WriteBehind(write)
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

    async def write(values: dict[str, int]) -> list[str]:
        if not started.is_set():
            started.set()
            await asyncio.Event().wait()
        written.append(values)
        return []

    behind: WriteBehind[str, int] = WriteBehind(write)
    behind.put("a", 1)
    flush = asyncio.create_task(behind.flush())
    await started.wait()
    other = asyncio.create_task(behind.flush())
    await asyncio.sleep(0)
    flush.cancel()
    await other
    assert (written, len(behind)) == ([{"a": 1}], 0)


async def test_who_waits_beside_one_that_puts_all_the_time_waits_for_two_flushes_at_most() -> None:
    """40 users list their conversations while somebody acks: each of them queued a whole flush."""
    waiters = 40
    steps: list[asyncio.Event] = []

    async def write(values: dict[str, int]) -> list[str]:
        steps.append(asyncio.Event())
        await steps[-1].wait()
        behind.put("acked", len(steps))  # moved again while it was written
        return []

    async def settle() -> None:
        for _ in range(5 * waiters):
            await asyncio.sleep(0)

    behind: WriteBehind[str, int] = WriteBehind(write)
    behind.put("acked", 0)
    flushes = [asyncio.create_task(behind.flush())]
    await settle()
    for _ in range(waiters):
        behind.put("acked", -1)
        flushes.append(asyncio.create_task(behind.flush()))
        await settle()
    for n in range(2):
        assert len(steps) == n + 1
        steps[n].set()
        await settle()
    assert [flush.done() for flush in flushes] == [True] * (waiters + 1)
    assert len(steps) == 2


async def test_the_next_flush_may_be_begun_by_somebody_who_did_not_wait() -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    written: list[dict[str, int]] = []

    async def write(values: dict[str, int]) -> list[str]:
        await gates[len(written)].wait()
        written.append(values)
        return []

    behind: WriteBehind[str, int] = WriteBehind(write)
    behind.put("a", 1)
    first = asyncio.create_task(behind.flush())
    await asyncio.sleep(0)
    behind.put("a", 2)
    waits = asyncio.create_task(behind.flush())
    await asyncio.sleep(0)
    gates[0].set()
    first.add_done_callback(lambda _: tasks.append(asyncio.create_task(behind.flush())))
    tasks: list[asyncio.Task[None]] = []
    await first
    gates[1].set()
    await waits
    await asyncio.gather(*tasks)
    assert written == [{"a": 1}, {"a": 2}]


async def test_what_is_locked_is_late_and_fails_nobody() -> None:
    locked = {"b"}
    written: list[dict[str, int]] = []

    async def write(values: dict[str, int]) -> set[str]:
        written.append(values)
        return locked & values.keys()

    behind: WriteBehind[str, int] = WriteBehind(write)
    behind.put("a", 1)
    behind.put("b", 1)
    await behind.flush()
    await behind.flush()
    assert (written, len(behind)) == ([{"a": 1, "b": 1}], 1)
    behind.put("b", 2)  # newer than the late one
    await behind.flush()
    locked.clear()
    await behind.flush(late=True)
    assert (written[1:], len(behind)) == ([{"b": 2}, {"b": 2}], 0)
