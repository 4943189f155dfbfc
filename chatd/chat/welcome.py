"""The welcome: the pages that answer a hello, and where each conversation's log starts.

An item has the head that memory has in the loop turn in which it is made. With a cursor of the
client, the connection starts behind that cursor and is filled from the log (resync.py); without
one it starts at head + 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from chatd import protocol
from chatd.chat.listing import Listing, conversation_item, merge, read_on
from chatd.chat.services import Services
from chatd.core.conversation import Conversation
from chatd.core.session import Session, State
from chatd.postgres import mark
from chatd.postgres.rows import ConvRow
from chatd.protocol import Hello
from chatd.store import LIST_ALL_MAX
from chatd.wire.frames import encode_text

WELCOME_ITEMS: Final = LIST_ALL_MAX  # conversations a `welcome` frame: some 60 KB
RECEIPTS_A_TURN: Final = 500  # after a welcome, before the connection is asked for room: some 64 KB


async def send_welcome(
    s: Services, session: Session, hello: Hello, listing: Listing, presence: list[dict[str, object]]
) -> None:
    """Queue the pages of the welcome, and read on where the listing has more.

    Each is made and queued in one loop turn; between two the connection may ask for a pause. So the
    rows of one page of the listing are in memory, however many conversations there are. Raises
    Unavailable, Overloaded.
    """
    first = _first_page(s, session, listing, presence)
    behind: set[bool] = set()
    while True:
        rows, is_read = listing.take(), listing.next is None
        for at in range(0, max(len(rows), is_read), WELCOME_ITEMS):
            await session.sink.drained()
            if session.state is not State.OPENING:
                return
            last_of = listing if is_read and at + WELCOME_ITEMS >= len(rows) else None
            page = rows[at : at + WELCOME_ITEMS]
            session.sink.send(_page(s, session, hello, page, behind, first, last_of))
            first = {}
        if is_read:
            return
        rows = page = []  # not kept while the client takes its time
        await session.sink.drained()
        if session.state is not State.OPENING:
            return
        await read_on(s, session, hello, listing)


def _page(
    s: Services, session: Session, hello: Hello, rows: list[ConvRow], behind: set[bool],
    first: Mapping[str, object], last_of: Listing | None,
) -> bytes:  # fmt: skip
    """One page; with the mark if it is the last of the listing.

    A function of its own, so that its items are not kept while the next page is waited for.
    """
    cursors = hello.cursors if hello.epoch is None or hello.epoch == s.store.epoch else {}
    items = [_item(s, session, row, cursors.get(row.id)) for row in rows]
    behind |= {
        row.changed
        for row, item in zip(rows, items, strict=True)
        if item["head"] < row.head  # type: ignore[operator]
    }
    facts = {"id": hello.id, **first, "conversations": items, "more": last_of is None}
    if last_of is not None:
        facts["since"] = _mark(s, hello, last_of, behind)
    return encode_text(protocol.frame("welcome", **facts))


def _mark(s: Services, hello: Hello, listing: Listing, behind: Collection[bool]) -> str:
    """The mark that the client names in its next hello.

    `behind`: of rows whose items had an older head, because the rest was not delivered here yet,
    whether they changed since the client's mark. The rest follows on this connection. A client that
    leaves before it has arrived need not name the conversation next time, so the mark must not
    claim that it has seen it: it gets an older mark.
    """
    if not behind:
        return listing.mark
    same = hello.epoch is None or hello.epoch == s.store.epoch
    if same and hello.since is not None and mark.read(hello.since, s.store.epoch) is not None and all(behind):
        return hello.since
    return str(mark.of_all(s.store.epoch))


async def push_moved(s: Services, session: Session) -> None:
    """Push the cursors that moved during the welcome; receipts are pushed to live sessions only."""
    for n, (id, side) in enumerate(session.take_moved(), 1):
        if (conv := s.registry.convs.get(id)) is not None:
            session.sink.send(encode_text(receipt(conv, side)))
        if n % RECEIPTS_A_TURN == 0:
            await session.sink.drained()
            if not session.live:
                return


def receipt(conv: Conversation, side: int) -> bytes:
    """The push of one side's cursors."""
    return protocol.receipt(conv.id, *conv.names(side), *conv.cursor(side))


def _first_page(
    s: Services, session: Session, listing: Listing, presence: list[dict[str, object]]
) -> Mapping[str, object]:
    """The fields of the first page only."""
    assert session.user is not None
    c = s.settings
    return {
        "user": session.user.id,
        "device": session.device,
        "v": protocol.VERSION,
        "features": [],
        "epoch": s.store.epoch,
        "ts": listing.now_ms,
        "heartbeat_ms": c.heartbeat_ms,
        "exp": session.exp_ms,
        "limits": {
            "frame_bytes": c.frame_bytes_max,
            "body_bytes": c.body_bytes_max,
            "messages": c.rate_messages,
            "per_ms": c.rate_per_ms,
            "watch": c.watch_max,
            "history": c.history_max,
            "edit_ms": c.edit_window_ms,
            "resync": c.resync_entries_max,
        },
        "presence": presence,
    }


def _item(s: Services, session: Session, row: ConvRow, cursor: int | None) -> dict[str, object]:
    """One conversation of a welcome; decides where its log starts on this connection."""
    assert session.user is not None
    item = conversation_item(s, session.user, row)
    conv: Conversation | ConvRow = s.registry.convs.get(row.id) or row
    mine = conv.side(session.user.id)
    if item["read"] != min(conv.cursor(mine)[1], conv.head):
        session.cursor_moved(conv.id, mine)  # the current cursor follows as a receipt
    start = None
    if cursor is not None:
        after = max(cursor, conv.floor - 1)
        if cursor > conv.head:
            item["reset"] = True
        elif conv.head - after > s.settings.resync_entries_max:
            item["page"] = True
        elif after < conv.head:
            start = after
    if start is not None:
        if conv is row:  # what is filled from the log is in memory
            merge(s, session.user, row)
        session.filled(conv.id, start)
    else:
        session.caught_up(conv.id)  # what was not pushed to it during its hello is at or below this head
    return item
