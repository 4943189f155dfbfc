"""Loads conversations that are not in memory, when a request names them.

    NotHeld ──seek──► wanted ──one query for all of a loop turn──► merge into memory ──► then(error)

A node alone holds the conversations in use (core/conversations.py). Two requests that name the same
one share its read, and while that is under way the conversation is not let go: so a row that was
read earlier never comes into memory after a later one. Requests that wait for it are in
chat/waiting_requests.py. A conversation of others is not taken into memory if one names it, and one
without entries counts as missing: nobody can name it by its id, and for the first message to
its peer chat/new_conversations.py makes sure that there is a row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeAlias

import structlog

from chatd import errors
from chatd.chat import listing
from chatd.chat.services import Services
from chatd.core.conversation import Conversation
from chatd.core.conversations import NotHeld, pair_of
from chatd.core.session import User
from chatd.ids import ConvId, UserId
from chatd.postgres.rows import ConvRow

log = structlog.get_logger("chat")

LOAD_MAX: Final = 500  # conversations a query: 3 ms of PostgreSQL
READERS_MAX: Final = 2  # queries at a time; most of the pool is for reads

Pair: TypeAlias = tuple[UserId, UserId]
Key: TypeAlias = "ConvId | Pair"
Then: TypeAlias = Callable[[errors.Retryable | None], None]


class _Sought:
    """Who looks for a conversation, and what is called once it is there or known to be missing."""

    __slots__ = ("thens", "users")

    def __init__(self) -> None:
        self.users: set[UserId] = set()
        self.thens: list[Then] = []


class Loading:
    """Of all sessions of a node."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._wanted: dict[Key, _Sought] = {}  # for the next query, in order
        self._asked: dict[Key, _Sought] = {}  # of queries under way
        self._readers = 0

    def is_seeking(self, conv: Conversation) -> bool:
        """Whether its row is being read: it must not be let go."""
        return any(key in asked for key in (conv.id, (conv.a, conv.b)) for asked in (self._wanted, self._asked))

    @property
    def under_way(self) -> int:
        """Conversations that are looked for."""
        return len(self._wanted) + len(self._asked)

    def seek(self, user: User, key: ConvId | UserId, then: Then | None = None) -> None:
        """Load what `user` names by its id or by the peer.

        `then` is called when it is in memory or known to be missing, or with the error; never
        before this returns, and in the same loop turn as the conversation comes into memory.
        """
        whole = pair_of(user.id, key) if isinstance(key, str) else key
        sought = self._asked.get(whole)
        if sought is None:
            sought = self._wanted.setdefault(whole, _Sought())
            if self._readers < READERS_MAX:
                self._readers += 1
                self._s.tasks.spawn(self._read_all())
        sought.users.add(user.id)
        if then is not None:
            sought.thens.append(then)

    async def find(self, user: User, c: ConvId | None, to: UserId | None) -> Conversation:
        """The conversation that a read names; `Registry.find`, which loads it where it must.

        Raises also Unavailable, Overloaded. The user's reads keep it in memory.
        """
        registry = self._s.registry
        try:
            return registry.find(user, c, to)
        except NotHeld as missing:
            await self._load(user, missing.key)
            registry.sought = (user.id, missing.key)
            try:
                return registry.find(user, c, to)
            finally:
                registry.sought = None

    async def _load(self, user: User, key: ConvId | UserId) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: errors.Retryable | None) -> None:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)

        self.seek(user, key, done)
        await future

    async def load_peer(self, user: User, peer: UserId) -> None:
        """Have the conversation with a user in memory, if there is one.

        Raises Unavailable, Overloaded.
        """
        await self._load(user, peer)

    # ---- reading ---------------------------------------------------------------------------------

    async def _read_all(self) -> None:
        try:
            while self._wanted:
                asked = {key: self._wanted.pop(key) for key in list(self._wanted)[:LOAD_MAX]}
                self._asked |= asked
                error = await self._read(asked)
                for key in asked:
                    del self._asked[key]
                for sought in asked.values():
                    for then in sought.thens:
                        then(error)
        finally:
            self._readers -= 1

    async def _read(self, asked: dict[Key, _Sought]) -> errors.Retryable | None:
        """Read these into memory; gives the error where that is not possible."""
        s = self._s
        try:
            rows = await s.store.load_conversations(
                [key for key in asked if not isinstance(key, tuple)], [key for key in asked if isinstance(key, tuple)]
            )
            listing.check_pairs(s, rows)
        except errors.Retryable as e:
            return e
        for row in rows:
            self._take(row, asked)
        return None

    def _take(self, row: ConvRow, asked: dict[Key, _Sought]) -> None:
        """Take a row into memory, if one of its users looks for it."""
        if not row.head:
            return
        for key in (row.id, (row.a, row.b)):
            sought = asked.get(key)
            for id in (row.a, row.b):
                if sought is not None and id in sought.users and (user := self._s.registry.users.get(id)) is not None:
                    self._s.metrics.conversations_loaded += row.id not in self._s.registry.convs
                    listing.merge(self._s, user, row)
                    return
