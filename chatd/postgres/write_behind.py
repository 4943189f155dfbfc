"""Write-behind: the latest value of each key, coalesced and written by a later flush.

    put(key, value) ──► dirty ──flush──► write(values)      one flush at a time
                          ▲ what changes during a flush is dirty again

For cursors and last-seen times, which are not durable at once by design (docs/protocol.md, section
6). An outage shorter than the process loses nothing. Memory is bounded by the number of keys.

A caller waits for the flush under way and at most one more: however many wait, the next flush
writes what all of them have put. A value that cannot be written now, because another transaction
holds its row, fails no caller: it is `late`, and is written with the regular flushes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Generic, TypeAlias, TypeVar

K = TypeVar("K")
V = TypeVar("V")
Flush: TypeAlias = "asyncio.Future[BaseException | None]"  # gives its error, None if it succeeded


class WriteBehind(Generic[K, V]):
    """`write` takes the dirty values by key, and gives the keys that it had to leave.

    If it raises, all who wait for that flush get the error, and the values stay dirty.
    """

    __slots__ = ("_dirty", "_flushing", "_late", "_next", "_write", "_writing")

    def __init__(self, write: Callable[[dict[K, V]], Awaitable[Collection[K] | None]]) -> None:
        self._write = write
        self._dirty: dict[K, V] = {}
        self._late: dict[K, V] = {}
        self._writing: dict[K, V] = {}  # by the flush under way
        self._flushing: Flush | None = None
        self._next: Flush | None = None  # of the flush after it, once a caller waits for that one

    def __len__(self) -> int:
        return len(self._dirty.keys() | self._late.keys())

    def __contains__(self, key: K) -> bool:
        """Whether a value of this key is not written yet."""
        return key in self._dirty or key in self._late or key in self._writing

    def put(self, key: K, value: V) -> None:
        """Have a value written; it replaces an earlier one of the key."""
        self._late.pop(key, None)
        self._dirty[key] = value

    async def flush(self, *, late: bool = False) -> None:
        """Return when what was put before is written, or `late`.

        Returns at once if nothing was put.

        `late`: write the late values, too.

        If a flush fails, all who wait for it get its error. If each of them tried in turn, the last
        of many would wait for many timeouts.
        """
        while (current := self._flushing) is not None:
            if self._dirty:
                following = self._next = self._next or asyncio.get_running_loop().create_future()
                await asyncio.wait([current])
                if not self._is_over(current):
                    continue  # it was cancelled
                if self._next is following:
                    break  # no caller runs it yet: this one does
                current = following
            await asyncio.wait([current])
            if self._is_over(current):
                return
        if late:
            self._dirty = self._late | self._dirty
            self._late = {}
        if self._dirty:
            await self._run()

    def _is_over(self, flush: Flush) -> bool:
        """Raises the error of the flush.

        False if it was cancelled, which is no error of those who wait for it.
        """
        error = flush.result()
        if error is not None and not isinstance(error, asyncio.CancelledError):
            raise error
        return error is None

    async def _run(self) -> None:
        self._flushing, self._next = self._next or asyncio.get_running_loop().create_future(), None
        values, self._dirty = self._dirty, {}
        self._writing = values
        error: BaseException | None = None
        try:
            left = await self._write(values)
            self._late |= {key: values[key] for key in left or () if key not in self._dirty}
            values = {}
        except BaseException as e:
            error = e
            raise
        finally:
            # Also when cancelled: what was not written is still dirty, unless a newer value was put
            self._dirty, self._writing = values | self._dirty, {}
            flushing, self._flushing = self._flushing, None
            flushing.set_result(error)
