"""What is written behind: the latest value of each key, coalesced, written now and then, and never lost by an outage shorter than the process.

    put(key, value) ──► dirty ──flush──► write(values)      at most one flush at a time; what changes meanwhile is dirty again

For cursors and last-seen, which are not durable at once by design (docs/protocol.md, section 6). Bounded by the number of keys in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Behind(Generic[K, V]):
    """`write` gets the dirty values by key, and gives those keys that could not be written now. What it raises goes to those who wait for this flush.

    What was not written stays dirty.
    """

    __slots__ = ("_dirty", "_flushing", "_number", "_write")

    def __init__(self, write: Callable[[dict[K, V]], Awaitable[Collection[K] | None]]) -> None:
        self._write = write
        self._dirty: dict[K, V] = {}
        self._flushing: asyncio.Future[BaseException | None] | None = None
        self._number = 0  # of the last flush that has begun

    def __len__(self) -> int:
        return len(self._dirty)

    def __iter__(self) -> Iterator[V]:
        """What waits to be written."""
        return iter(self._dirty.values())

    def put(self, key: K, value: V) -> None:
        """This is to be written; it replaces an earlier value of the key."""
        self._dirty[key] = value

    async def flush(self) -> None:
        """Return when what was put before is written; at once if nothing was, the common case.

        It takes the flush under way and the next one at most, which all who wait share. Those who wait for a flush that fails get its error: if each
        of them tried in turn, the last of many would wait for many timeouts.
        """
        mine = self._number + 1  # the first that begins from now on has all that was put
        while (flushing := self._flushing) is not None:
            number = self._number
            await asyncio.wait([flushing])
            if (failed := flushing.result()) is not None:
                raise failed
            if number >= mine:
                return
        if not self._dirty:
            return
        self._flushing = asyncio.get_running_loop().create_future()
        self._number += 1
        values, self._dirty = self._dirty, {}
        error: BaseException | None = None
        try:
            left = await self._write(values)
            values = {key: values[key] for key in left or ()}
        except Exception as e:
            error = e
            raise
        finally:
            # Also when cancelled: what was not written is dirty still, unless it has moved on meanwhile.
            self._dirty = values | self._dirty
            self._flushing.set_result(error)
            self._flushing = None
