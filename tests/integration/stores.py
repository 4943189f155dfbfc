"""Stores of nodes without the rest of a node, for tests of what PostgreSQL does for us."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

from chatd.metrics import Metrics
from chatd.postgres.append_answer import Outcome
from chatd.store import Limits, Store

LIMITS = Limits(
    lanes=1,
    batch_rows_max=256,
    lane_queue_max=4096,
    lane_deadline_ms=5000,
    pool_max=4,
    reads_queue_max=1000,
    edit_window_ms=900_000,
    cursor_flush_ms=600_000,
)

StartStore: TypeAlias = Callable[..., Awaitable[Store]]  # its keyword arguments replace limits


class NoLane:
    """The outcome of entries where no test submits any."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


@contextlib.asynccontextmanager
async def stores(database_url: str, outcome: Outcome, limits: Limits) -> AsyncIterator[StartStore]:
    """Start stores with their tasks; all are stopped at the end."""
    started: list[tuple[Store, list[asyncio.Task[None]]]] = []

    async def start(**replaced: Any) -> Store:
        store = Store(database_url, limits._replace(**replaced), Metrics())
        works = await store.start(outcome)
        started.append((store, [asyncio.create_task(work) for work in works]))
        return store

    yield start
    for store, tasks in started:
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await store.stop()
