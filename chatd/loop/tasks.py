"""The tasks of a node: short work for one request, and tasks that live as long as the node.

A task that ends with an error, or a watched one that ends at all, is a bug: `failed` has it from
then on, and the node stops, so that its supervisor starts another one, rather than live on without
a part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

import structlog

from chatd.errors import ChatdError
from chatd.loop import ending

log = structlog.get_logger("server")  # the name that operators know this event by


class Tasks:
    """Made in a running event loop. `failed`: ends with the first error that must not happen."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.spawned: set[asyncio.Task[None]] = set()
        self.watched: dict[str, asyncio.Task[None]] = {}
        self.failed: asyncio.Future[None] = self._loop.create_future()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Short work for one request: it handles its own errors."""
        task = self._loop.create_task(work)
        self.spawned.add(task)
        task.add_done_callback(self._spawned)
        return task

    def watch(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """A task for the life of the node: if it ends, the node fails."""
        task = self.watched[name] = self._loop.create_task(work, name=name)
        task.add_done_callback(partial(self._ended, name))

    async def cancel(self) -> None:
        """Cancel all of them, and wait until they have ended."""
        await ending.cancelled([*self.spawned, *self.watched.values()])

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self.spawned.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail("task", error)

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._fail(name, task.exception())

    def _fail(self, name: str, error: BaseException | None) -> None:
        log.critical("task.died", task=name, exc_info=error)
        if not self.failed.done():
            self.failed.set_exception(error or ChatdError(f"{name} ended"))
