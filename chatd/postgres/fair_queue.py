"""Fair turns at a scarce resource: a bounded number at a time, round-robin over users.

Pure except for futures.

    async with turns.turn(user): ...          waits; raises Overloaded where too many wait

Users wait in a ring, each with its own queue: a user with a hundred requests and one with a single
request get the next two turns. The number of waiting requests is bounded. Past the bound, the user
with the longest queue loses its newest request; a user with a shorter queue is let in.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from chatd import errors
from chatd.ids import UserId

RETRY_MS: Final = 1_000  # for a request that found no room: a full queue is served in less


class Turns:
    """At most `at_once` turns under way, `of_one` of one user; `waiting_max` requests that wait."""

    def __init__(self, at_once: int, of_one: int, waiting_max: int) -> None:
        self._free = at_once
        self._of_one, self._waiting_max = of_one, waiting_max
        self._running: dict[UserId, int] = {}
        self._queues: dict[UserId, deque[asyncio.Future[None]]] = {}  # none of them is empty
        # Users by the length of their queue. A full queue stays full for thousands of requests a
        # second, and each is to cost the same however many users wait.
        self._by_length: list[dict[UserId, None]] = [{}]
        self._longest = 0
        # Users that wait and may have another turn, the next one first. Not a dict: to take the
        # first of thousands, one by one, would pass over all that are gone each time.
        self._ring: OrderedDict[UserId, None] = OrderedDict()
        self.waiting = 0

    @property
    def running(self) -> int:
        """Turns under way."""
        return sum(self._running.values())

    @asynccontextmanager
    async def turn(self, user: UserId) -> AsyncIterator[None]:
        """Hold a turn of this user. Waits for it; raises Overloaded."""
        # Every user that waits now has all the turns it may have: none is overtaken
        if self._free and user not in self._queues and self._running.get(user, 0) < self._of_one:
            self._begin(user)
        else:
            await self._wait(user)
        try:
            yield
        finally:
            self._end(user)

    async def _wait(self, user: UserId) -> None:
        if self.waiting >= self._waiting_max:
            self._make_room(user)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._queues.setdefault(user, deque())
        queue.append(future)
        self._resized(user, len(queue) - 1, len(queue))
        self.waiting += 1
        self._enter(user)
        self._serve()
        try:
            await future
        except asyncio.CancelledError:
            if future.cancelled():
                self._leave(user, future)
            elif future.exception() is None:  # the turn was granted in the same turn of the loop
                self._end(user)
            raise

    def _make_room(self, user: UserId) -> None:
        """Drop the newest request of the longest queue.

        Raises Overloaded unless that queue is longer than `user`'s would be with this request.
        """
        error = errors.Overloaded("too many reads wait for the database", retry_ms=RETRY_MS)
        if self._longest <= len(self._queues.get(user, ())) + 1:
            raise error
        longest = next(iter(self._by_length[self._longest]))
        newest = self._queues[longest][-1]
        self._leave(longest, newest)
        if not newest.cancelled():
            newest.set_exception(error)

    def _leave(self, user: UserId, future: asyncio.Future[None]) -> None:
        """Take a request out of its queue, if it is still there."""
        queue = self._queues.get(user, ())
        if future not in queue:
            return
        assert isinstance(queue, deque)
        queue.remove(future)
        self._resized(user, len(queue) + 1, len(queue))
        self.waiting -= 1
        if not queue:
            del self._queues[user]
            self._ring.pop(user, None)

    def _resized(self, user: UserId, before: int, now: int) -> None:
        """A queue has one request more, or one less."""
        by_length = self._by_length
        if before:
            del by_length[before][user]
        if now:
            if now == len(by_length):
                by_length.append({})
            by_length[now][user] = None
        if now > self._longest or (before == self._longest and not by_length[before]):
            self._longest = now

    def _enter(self, user: UserId) -> None:
        """Put a user at the end of the ring, if it waits and may have another turn."""
        if user in self._queues and self._running.get(user, 0) < self._of_one and user not in self._ring:
            self._ring[user] = None

    def _serve(self) -> None:
        while self._free and self._ring:
            user, _ = self._ring.popitem(last=False)
            future = self._queues[user][0]
            self._leave(user, future)
            if not future.cancelled():  # else its task leaves the queue by itself
                self._begin(user)
                future.set_result(None)
            self._enter(user)

    def _begin(self, user: UserId) -> None:
        self._free -= 1
        self._running[user] = self._running.get(user, 0) + 1

    def _end(self, user: UserId) -> None:
        self._free += 1
        self._running[user] -= 1
        if not self._running[user]:
            del self._running[user]
        self._enter(user)
        self._serve()
