"""What is written behind: the latest value of each key, coalesced, written now and then, and never lost by an outage shorter than the process.

    put(key, value) ──► dirty ──flush──► write(values)      at most one flush at a time; what changes meanwhile is dirty again

For cursors and last-seen, which are not durable at once by design (docs/protocol.md, section 6). Bounded by the number of keys in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Behind(Generic[K, V]):
    """`write` gets the dirty values by key; what it raises goes to whoever flushes, and the values stay dirty."""

    __slots__ = ("_dirty", "_flushing", "_write")

    def __init__(self, write: Callable[[dict[K, V]], Awaitable[object]]) -> None:
        self._write = write
        self._dirty: dict[K, V] = {}
        self._flushing: asyncio.Future[BaseException | None] | None = None

    def __len__(self) -> int:
        return len(self._dirty)

    def put(self, key: K, value: V) -> None:
        """This is to be written; it replaces an earlier value of the key."""
        self._dirty[key] = value

    async def flush(self) -> None:
        """Return when what was put before is written; at once if nothing was, the common case.

        Whoever waits for a flush that fails gets its error: if each of them tried in turn, the last of many would wait for many timeouts.
        """
        while (flushing := self._flushing) is not None:
            await asyncio.wait([flushing])
            if (failed := flushing.result()) is not None:
                raise failed
        if not self._dirty:
            return
        self._flushing = asyncio.get_running_loop().create_future()
        values, self._dirty = self._dirty, {}
        error: BaseException | None = None
        try:
            await self._write(values)
            values = {}
        except Exception as e:
            error = e
            raise
        finally:
            # Also when cancelled: what was not written is dirty still, unless it has moved on meanwhile.
            self._dirty = values | self._dirty
            self._flushing.set_result(error)
            self._flushing = None
