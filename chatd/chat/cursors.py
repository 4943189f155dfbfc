"""The requests `ack` and `read`: a user's cursor moves, is written behind, and is pushed to others.

    Chat.handle ──► Cursors.move ──► Conversation.advance ──► ok, receipts (chat/receipts.py),
                        └── beyond the head here: wait for the entries, as a read

A cursor beyond the head is an error of the client, unless the client may have got the entry on
another node, or a gap is being filled.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from chatd import errors, protocol
from chatd.chat import listing
from chatd.chat.reads import Reads
from chatd.chat.services import Services
from chatd.core.conversation import Conversation
from chatd.core.session import Session
from chatd.protocol import Ack, Read
from chatd.wire.frames import encode_text


class Cursors:
    """Of all sessions of a node."""

    def __init__(self, services: Services, reads: Reads) -> None:
        self._s, self._reads = services, reads
        self._share_log = services.others.share_log

    def move(self, session: Session, request: Ack | Read) -> None:
        """Carry out a request, now or by a read. Raises the refusal."""
        assert session.user is not None
        conv = self._s.registry.find(session.user, request.c, request.to)
        if request.seq > conv.head and (conv.gap is not None or self._share_log):
            self._reads.begin(session, request.id, partial(self._late, session, request, conv))
        else:
            session.sink.send(encode_text(self._advance(session, request, conv)))

    async def _late(self, session: Session, request: Ack | Read, conv: Conversation) -> bytes:
        """The client may have got on another node what has not come here yet."""
        s = self._s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(listing.OVERTAKEN_S_MAX):
                await s.delivery.gaps.closed(conv)
        # The log is another one since: its cursors are not this one's
        if s.registry.convs.get(conv.id) is not conv:
            raise errors.Unavailable("the log is another one: connect again", retry_ms=listing.OPEN_RETRY_MS)
        if request.seq > conv.head and conv.gap is not None and request.seq <= conv.gap.upto:
            raise errors.Unavailable("this entry is not delivered here yet; try again", retry_ms=listing.OPEN_RETRY_MS)
        return self._advance(session, request, conv)

    def _advance(self, session: Session, request: Ack | Read, conv: Conversation) -> bytes:
        """Move the cursor and tell the others; gives the reply."""
        s, user = self._s, session.user
        assert user is not None
        if request.seq > conv.head:
            raise errors.BadSeq(f"seq {request.seq} is beyond the head, {conv.head}", field="seq")
        side = conv.side(user.id)
        moved = conv.advance(side, request.seq, request.seq if type(request) is Read else 0)
        reply = protocol.ok_cursor(request.id, conv.id, *conv.cursor(side))
        if moved:
            s.store.cursor_moved(conv)
            s.delivery.receipts.push(conv, side, session)
            s.others.receipt(conv, side, user)
        return reply
