"""What a client asks the server for: pages and lists, presence, typing, a new token.

Reads wait for a connection, and are asked again after a cut.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import Final

from chatd.client import frames
from chatd.client.arguments import check_user
from chatd.client.life import Life
from chatd.client.values import ConversationItem, ConversationPage, Entry, Page, Presence

TYPING_S: Final = 3.0  # between two signs in one conversation: the receiver shows each for 6 s
TYPING_PEERS_MAX: Final = 1_000


class Asking(Life):
    """See the module."""

    async def history(self, peer: str, *, before: int | None = None, after: int | None = None, limit: int = 50) -> Page:
        """A page of the log: the newest, or older than `before`, or newer than `after`.

        `limit` counts messages.
        """
        check_user(peer)
        keys = {"before": before, "after": after, "limit": limit}
        reply = await self._ask("history", {k: v for k, v in keys.items() if v is not None}, peer)
        page = frames.page(reply, self.user, self.epoch or "", after=after or 0)
        for entry in page.entries:
            if entry.own and entry.cid is not None and entry.kind == "message":
                self._desk.own(peer, entry.seq, entry.cid)
        return page

    async def iter_history(
        self, peer: str, *, before: int | None = None, after: int | None = None
    ) -> AsyncIterator[Entry]:
        """All entries with `peer`, a page at a time: from the newest to the oldest, or with `after`
        from there to the newest. `before` and `after` exclude each other.
        """
        if before is not None and after is not None:
            raise ValueError("iter_history goes one way: give `before` or `after`")
        limit = self.limits.history
        while True:
            page = await self.history(peer, before=before, after=after, limit=limit)
            for entry in page.entries if after is not None else reversed(page.entries):
                yield entry
            seqs = [entry.seq for entry in page.entries] + list(page.unreadable)
            if not page.more or not seqs:
                return
            if after is None:
                before = min(seqs)
            else:
                after = max(seqs)

    async def conversations(self, *, limit: int = 50, cursor: str | None = None) -> ConversationPage:
        """A page of the conversations, that with the latest entry first.

        The `cursor` of a page asks for the next.
        """
        return frames.conversation_page(
            await self._ask("conversations", {"limit": limit} | ({} if cursor is None else {"cursor": cursor}))
        )

    async def iter_conversations(self) -> AsyncIterator[ConversationItem]:
        """All conversations, a page at a time. One that moves up is given once."""
        seen: set[str] = set()
        cursor: str | None = None
        while True:
            page = await self.conversations(limit=self.limits.history, cursor=cursor)
            for item in page.items:
                if item.c not in seen:
                    seen.add(item.c)
                    yield item
            cursor = page.cursor
            if cursor is None:
                return

    async def watch(self, users: Sequence[str]) -> tuple[Presence, ...]:
        """Watch the presence of these users over reconnects; replaces the last list.

        Returns their presence now; `events` has what changes from then on. Where this raises, the
        last list stays.
        """
        if isinstance(users, str):
            raise TypeError(f"watch takes a list of users; for one: watch([{users!r}])")
        for user in users:
            check_user(user)
        names = tuple(dict.fromkeys(users))
        snapshot = frames.presences(await self._ask("watch", {"users": names}))
        self._desk.watch(names, snapshot)
        return snapshot

    async def typing(self, peer: str) -> None:
        """Show `peer` that this user is typing. Call it at each key: one sign goes out in 3 s.

        Waits for nothing. Nothing is shown without a connection, and where not both have sent.
        """
        check_user(peer)
        self._check()
        if self._session is None or self._session.draining:
            return
        now = self._session.now()
        if now - self._typed.get(peer, -TYPING_S) < TYPING_S:
            return
        self._typed[peer] = now
        self._typed.move_to_end(peer)
        if len(self._typed) > TYPING_PEERS_MAX:
            self._typed.popitem(last=False)
        self._session.say("typing", self._session.where(peer))

    @property
    def _typed(self) -> OrderedDict[str, float]:
        return self._desk.typed

    async def refresh(self) -> None:
        """Get a new token, and give it to the server on this connection.

        The client does so by itself before a token ends. Raises NoToken and what else the callable
        raises, RequestError if the server refuses the token, and RuntimeError where it is a text.
        """
        self._check()
        await self._ask("refresh", {"token": await self._reconnector.renewed()})

    async def set_away(self, away: bool) -> None:
        """Whether this device is idle; holds over reconnects."""
        self._check()
        self._desk.away = away
        if self._session is not None:
            await self._ask("presence", {"state": "away" if away else "online"})
