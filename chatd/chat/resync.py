"""Resync: what a session missed, from the log to its connection, as fast as its client reads.

    behind ──► wants ──entries, several conversations a query──► push a chunk ──room?──► push ...
                                                                  ──► nothing is missing: live

`behind` has the conversations in which a session is behind, with the seq that it has reached; live
entries of these are not pushed to it (chat/delivery.py). The log is the queue: at most one chunk
waits in memory for a client, and nothing is read for a client that takes nothing. So a client that
reads is never closed for the size of what it missed; one that does not read is closed by its
connection's heartbeat. A conversation goes live in the loop turn in which nothing of it is missing
any more. Where it starts in each conversation is decided by chat/welcome.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from chatd import errors
from chatd import log as logs
from chatd.chat import delivery_log
from chatd.chat.entry_payloads import stored_frame
from chatd.chat.gap_fill import FILL_RETRY_S
from chatd.core.conversation import Conversation
from chatd.core.conversations import Registry
from chatd.core.session import Session, State
from chatd.ids import ConvId
from chatd.metrics import Metrics
from chatd.protocol import Stored
from chatd.store import Store

READ_ENTRIES: Final = 200  # a query, of all its conversations: usually 20 KB, at most 0.8 MB
READ_CONVS: Final = 50  # a query
# Of all sessions, in the queue of reads at a time; the others wait for a place. All 10,000 of a
# reconnect storm at once would fill that queue, be refused, and ask again and again.
QUEUED_MAX: Final = 32
# Queued for a client before its connection is asked for room again. Up to
# connection.WRITE_HIGH_BYTES go to the kernel at once
CHUNK_BYTES: Final = 65_536


async def written(session: Session) -> None:
    """Wait until what was queued is with the kernel."""
    # The queue is written at the end of the loop turn; after that it is known whether the kernel
    # took it all
    await asyncio.sleep(0)
    await session.sink.drained()


class Resync:
    """Resync of all sessions. `spawn` starts a watched task."""

    def __init__(
        self, registry: Registry, store: Store, metrics: Metrics, spawn: Callable[[Coroutine[Any, Any, None]], object]
    ) -> None:
        self._registry, self._store, self._metrics, self._spawn = registry, store, metrics, spawn
        self._places = asyncio.Semaphore(QUEUED_MAX)

    def miss(self, session: Session, conv_id: ConvId, after: int) -> None:
        """A live session has this conversation up to `after`; push the rest from the log."""
        is_filling = bool(session.behind)
        session.miss(conv_id, after)
        if not is_filling:
            self._spawn(self.fill(session))

    async def fill(self, session: Session) -> None:
        """Push to a session what it misses of the conversations in `behind`.

        At most one runs for a session; it ends early if the session closes.
        """
        assert session.user is not None
        self._metrics.resyncs += 1
        while session.behind and session.state is State.LIVE:
            await session.sink.drained()
            wants = self._wants(session)
            if not wants:
                continue
            try:
                async with self._places, self._store.read_turns.turn(session.user.id):
                    rows = await self._store.entries_many(wants, READ_ENTRIES)
            except errors.Retryable:
                await asyncio.sleep(FILL_RETRY_S)
                continue
            self._store.history.shown(want[0] for want in wants)
            by_conv: dict[ConvId, list[Stored]] = {conv_id: [] for conv_id, _, _ in wants}
            for conv_id, e in rows:
                by_conv[conv_id].append(e)
            for conv_id, _, upto in wants:
                await session.sink.drained()
                await self._push(session, conv_id, upto, by_conv[conv_id])

    def _wants(self, session: Session) -> list[tuple[ConvId, int, int]]:
        """What to read next, as (conversation, after, up to).

        Conversations in which nothing is missing any more go live here.
        """
        assert session.behind is not None
        wants: list[tuple[ConvId, int, int]] = []
        left = READ_ENTRIES
        for conv_id, got in list(session.behind.items()):
            conv = self._registry.convs.get(conv_id)
            after = got if conv is None else max(got, conv.floor - 1)  # retention has dropped what lies between
            if conv is None or after >= conv.head:
                session.caught_up(conv_id)
                continue
            session.filled(conv_id, after)
            if left and len(wants) < READ_CONVS:
                upto = min(conv.head, after + left)
                wants.append((conv_id, after, upto))
                left -= upto - after
        return wants

    async def _push(self, session: Session, conv_id: ConvId, upto: int, entries: list[Stored]) -> None:
        """Queue the entries of one conversation, in chunks for which there is room.

        Entries that were not found were dropped by retention. Only a wait can change what the
        session misses.
        """
        conv, queued, got = self._registry.convs.get(conv_id), 0, 0
        if entries and not self._is_behind(session, conv_id, conv, entries[0].seq):
            return
        for e in entries:
            if queued >= CHUNK_BYTES:
                session.filled(conv_id, got)
                await session.sink.drained()
                queued = 0
                if not self._is_behind(session, conv_id, conv, e.seq):
                    return
            assert conv is not None
            assert session.user is not None
            frame = session.take_held(conv_id, e.seq) or stored_frame(conv, e, session.user.id)
            session.sink.send(frame)
            if logs.DEBUG_ON:
                delivery_log.filled(session, conv_id, (e,))
            queued += len(frame)
            got = e.seq
            self._metrics.resync_entries += 1
        if self._is_behind(session, conv_id, conv, upto):
            assert conv is not None
            if upto >= conv.head:
                session.caught_up(conv_id)
            else:
                session.filled(conv_id, upto)

    def _is_behind(self, session: Session, conv_id: ConvId, conv: Conversation | None, seq: int) -> bool:
        """Whether the session still misses what is about to be pushed.

        It may have closed since the read, or the log may be another one.
        """
        got = None if session.behind is None or session.state is not State.LIVE else session.behind.get(conv_id)
        return got is not None and got <= seq and conv is not None and self._registry.convs.get(conv_id) is conv
