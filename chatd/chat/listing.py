"""The listing of a hello: a user's conversations, read page by page, and what to list.

    read_listing ─► what changed since the mark; on a node among others, all rows of a new user
                 ─► merge ─► memory   ─► conversation_item ─► `welcome`, `conversations`
       read_on   ─► the next page, once the client has taken the one before (chat/welcome.py)

Each page is read in a turn of its user among hellos (postgres/fair_queue.py). A reconnect storm
queues there and not before all other reads, and an account with 20,000 conversations keeps other
users waiting for one page at most. One page of a user is read at a time, and a listing whose
session has gone ends with its page.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from chatd import errors
from chatd.chat.services import Services
from chatd.core.conversation import Conversation
from chatd.core.session import Session, User
from chatd.core.snapshot import Snapshot
from chatd.ids import ConvId, Seq, UserId
from chatd.postgres import mark
from chatd.postgres.rows import BEGIN, ConvRow, ListingPage
from chatd.postgres.sweep import Swept
from chatd.protocol import Hello
from chatd.store import LIST_ROWS_MAX

OPEN_RETRY_MS: Final = 1_000
OVERTAKEN_S_MAX: Final = 3.0


@dataclass(slots=True)
class Listing:
    """What a hello has read: the mark, the database's time (ms since 1970), the rows to list.

    `position`: of the log then (`ListingPage`). `next`: the other participant after whom the next
    page begins; None: these were the last rows. `is_all`: these are all conversations of the user.
    `generation`: of the log (`LogState`).
    """

    mark: str
    now_ms: int
    rows: list[ConvRow]
    position: int
    generation: int
    next: UserId | None = None
    is_all: bool = False

    def take(self) -> list[ConvRow]:
        """The rows, which are not kept."""
        rows, self.rows = self.rows, []
        return rows


async def seek_changed(s: Services, session: Session, hello: Hello) -> Swept | None:
    """What changed since the client's mark, if many say hello at once and only that is to be read.

    Raises Unavailable, Overloaded.
    """
    assert session.user is not None
    if s.registry.holds_all or s.others.share_log or session.gone:
        return None
    return await s.store.swept(session.user.id, _since(s, hello))


def _since(s: Services, hello: Hello) -> str | None:
    """The client's mark, if it is one of this log."""
    same = hello.epoch is None or hello.epoch == s.store.epoch
    return hello.since if same and mark.read(hello.since, s.store.epoch) is not None else None


async def read_listing(s: Services, session: Session, hello: Hello, swept: Swept | None = None) -> Listing:
    """Read the conversations to list; with `swept`, no others than it names.

    On a node that holds all conversations of a user, all are read, and those that are missing come
    into memory. On a node alone this is the first page. Raises Unavailable, Overloaded.
    """
    user, holds_all = session.user, s.registry.holds_all
    assert user is not None
    if user.unsure:
        raise errors.Unavailable("what the user has is being looked at again", retry_ms=OPEN_RETRY_MS)
    same = hello.epoch is None or hello.epoch == s.store.epoch
    named = hello.cursors if same else {}
    since = _since(s, hello)
    pages = s.others.pages()
    generation = s.store.log.generation if swept is None else swept.generation
    everything = holds_all and not user.loaded
    heads: dict[ConvId, int] | None = {} if s.others.share_log and not user.loaded else None
    page: ListingPage | None = None
    if swept is not None:
        first, now_ms, rows = await _read_swept(s, user, swept, named)
    elif holds_all or heads is not None:
        first, now_ms, rows = await _read_pages(s, user, since, everything, list(named), session, heads)
    else:
        first = page = await _read_page(s, user, since, BEGIN, since is None, list(named))
        now_ms, rows = page.now_ms, _listed(page, since, named)
    _check_log(s, generation)
    if not holds_all and not session.gone:
        _check_unproven(user, first.snapshot)
        s.registry.listed(user, first.snapshot)
    user.loaded, loaded, early, user.early = holds_all, user.loaded, user.early, None
    if heads is not None:
        _mark_passed_by(session, user, heads)
    counted = ahead_of(s, rows)
    if counted or early or s.others.pages() != pages:
        # Another node has written since, perhaps later than our snapshot and in a conversation that
        # was not known here yet
        try:
            _, _, again = await _read_pages(s, user, first.mark, False, counted, session)
        except errors.Retryable:
            # In another log memory holds nothing of the user any more
            if holds_all and s.store.log.generation == generation and not loaded:
                if any(one is not session for one in user.sessions.values()):
                    user.unsure = True
                    s.tasks.spawn(_look_again(s, user, first.mark, generation))
                else:
                    user.loaded, user.early = False, early
            raise
        _check_log(s, generation)
        newer = {row.id for row in again}
        rows = [row for row in rows if row.id not in newer] + again
    after = None if page is None else page.next
    return Listing(first.mark, now_ms, rows, first.position, generation, after, since is None and after is None)


async def read_on(s: Services, session: Session, hello: Hello, listing: Listing) -> None:
    """Read the next page into `listing`; it may have no rows to list.

    Its rows are newer than the listing's mark and snapshot: no change falls between. Raises
    Unavailable, Overloaded.
    """
    user, after = session.user, listing.next
    assert user is not None
    assert after is not None
    since = _since(s, hello)
    named = hello.cursors if hello.epoch is None or hello.epoch == s.store.epoch else {}
    page = await _read_page(s, user, since, after, since is None, list(named))
    _check_log(s, listing.generation)
    rows = _listed(page, since, named)
    if counted := ahead_of(s, rows):
        newer = await s.store.list_conversations(user.id, counted, s.store.hello_turns)
        _check_log(s, listing.generation)
        rows = [row if (new := newer.get(row.id)) is None else new._replace(changed=row.changed) for row in rows]
    listing.rows, listing.next = rows, page.next
    await catch_up(s, hello, rows)


def _check_unproven(user: User, snapshot: Snapshot) -> None:
    """Raises Unavailable if the snapshot is older than what was loaded during the listing.

    Entries of a conversation that was loaded with them would never be pushed to the session.
    """
    if user.unproven and not snapshot.sees(user.unproven, snapshot.started):
        raise errors.Unavailable("somebody else writes to the log; connect again", retry_ms=OPEN_RETRY_MS)


async def _look_again(s: Services, user: User, since: str, generation: int) -> None:
    """Read what changed, in place of a hello that failed to.

    Other sessions of the user began with its first listing, and what that missed is a gap to them.
    """
    while s.registry.users.get(user.id) is user and s.store.log.generation == generation:
        try:
            await _read_pages(s, user, since, False, [], None)
            break
        except errors.Retryable:
            await asyncio.sleep(OPEN_RETRY_MS / 1000)
    user.unsure = False


def _check_log(s: Services, generation: int) -> None:
    """Raises Unavailable if another log was adopted since."""
    if s.store.log.generation != generation:
        raise errors.Unavailable("the log is another one since; connect again", retry_ms=OPEN_RETRY_MS)


def _mark_passed_by(session: Session, user: User, heads: Mapping[ConvId, int]) -> None:
    """Mark what is in memory beyond the heads of a user's first listing as missed by this session.

    None of it was pushed to the session. The listing of the other participant, with a later
    snapshot, has brought it into memory: another node wrote it in between (see `merge`).
    """
    for conv in user.peers.values():
        if conv.head > (seen := heads.get(conv.id, 0)):
            session.miss(conv.id, seen)


def ahead_of(s: Services, rows: Iterable[ConvRow]) -> list[ConvId]:
    """Conversations whose read cursors in memory are ahead of these rows.

    The rows' numbers of messages do not fit such cursors: the cursors are put to be written, and
    the caller reads the rows again.
    """
    convs = []
    for row in rows:
        if (conv := s.registry.convs.get(row.id)) is not None and (
            conv.a_read > row.a_read or conv.b_read > row.b_read
        ):
            s.store.cursor_moved(conv)
            convs.append(row.id)
    return convs


async def catch_up(s: Services, hello: Hello, rows: Iterable[ConvRow]) -> None:
    """Wait until this node has delivered what the client has got from another node, of these rows.

    Else the client would get it again. Raises Unavailable if that takes longer than
    `OVERTAKEN_S_MAX`.
    """
    await await_heads(s, rows, hello.cursors)
    convs = s.registry.convs  # without those of an earlier log, whose sessions have ended
    if any(
        (conv := convs.get(row.id)) is not None and row.head > conv.head < hello.cursors.get(row.id, 0) for row in rows
    ):
        raise errors.Unavailable("this node is behind the one you come from", retry_ms=OPEN_RETRY_MS)


async def await_heads(
    s: Services, rows: Iterable[ConvRow], cursors: Mapping[ConvId, Seq] = MappingProxyType({})
) -> None:
    """Wait until the heads here reach the cursors: those of the rows, of memory, and `cursors`.

    An item must not have a head that is older than the cursors beside it. After `OVERTAKEN_S_MAX`
    the cursors are cut to the head (`conversation_item`).
    """
    behind = []
    for row in rows:
        conv = s.registry.convs.get(row.id)
        # The row's cursors, too: where they are ahead of the head in memory, memory's cursors do
        # not have them yet (Receipts.moved)
        if conv is None:
            continue
        furthest = max(row.a_delivered, row.b_delivered, conv.a_delivered, conv.b_delivered, cursors.get(row.id, 0))
        if row.head > conv.head < furthest:
            behind.append(conv)
    if behind:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OVERTAKEN_S_MAX):
                for conv in behind:
                    await s.delivery.gaps.closed(conv)


async def _read_pages(
    s: Services, user: User, since: str | None, everything: bool, named: list[ConvId], session: Session | None,
    heads: dict[ConvId, int] | None = None,
) -> tuple[ListingPage, int, list[ConvRow]]:  # fmt: skip
    """(first page, time, rows to list) of all pages.

    Rows of conversations that are in memory are merged into it, the others on a node that holds all
    conversations of a user. `everything`: read also what did not change. `session`: for which this
    is read; once it has gone, nothing more is read, and Unavailable is raised. `heads`: gets those
    of all rows.
    """
    first: ListingPage | None = None
    after = BEGIN
    rows: list[ConvRow] = []
    while True:
        page = await _read_page(s, user, since, after, everything or since is None, named)
        # The first page's mark, snapshot and position are the oldest: no change falls between
        first = first or page
        if heads is not None:
            heads.update((row.id, row.head) for row in page.rows)
        rows += _listed(page, since, named)
        if page.next is None:
            return first, page.now_ms, rows
        if session is not None and session.gone:
            raise errors.Unavailable("nobody waits for this listing any more", retry_ms=OPEN_RETRY_MS)
        after = page.next


async def _read_page(
    s: Services, user: User, since: str | None, after: UserId, all_rows: bool, named: list[ConvId]
) -> ListingPage:
    """`Store.list_changed`, with the rows merged into memory as `_read_pages` says."""
    page = await s.store.list_changed(user.id, since, after, all_rows, named)
    check_pairs(s, page.rows)
    for row in page.rows:
        if s.registry.holds_all or row.id in s.registry.convs:
            merge(s, user, row)
    return page


def _listed(page: ListingPage, since: str | None, named: Container[ConvId]) -> list[ConvRow]:
    """The rows of a page that are to be listed."""
    return [row for row in page.rows if since is None or row.changed or row.id in named]


async def _read_swept(
    s: Services, user: User, swept: Swept, named: Iterable[ConvId]
) -> tuple[ListingPage, int, list[ConvRow]]:
    """What `_read_pages` gives, of what a pass for many hellos has found (postgres/sweep.py)."""
    found = set(swept.ids)
    asked = [*swept.ids, *(id for id in named if id not in found)]
    rows: list[ConvRow] = []
    for at in range(0, len(asked), LIST_ROWS_MAX):
        part = await s.store.list_conversations(user.id, asked[at : at + LIST_ROWS_MAX], s.store.hello_turns)
        rows += (
            row._replace(changed=row.id in found)
            for row in part.values()
            if row.head and user.id in (row.a, row.b)  # a client may name any
        )
    check_pairs(s, rows)
    for row in rows:
        if row.id in s.registry.convs:
            merge(s, user, row)
    page = ListingPage(swept.mark, swept.now_ms, rows, None, swept.snapshot, swept.position)
    return page, swept.now_ms + int((time.monotonic() - swept.at_s) * 1000), rows


def check_pairs(s: Services, rows: Iterable[ConvRow]) -> None:
    """Raises Unavailable if these rows are not of the log in memory, so that none is merged."""
    if not all(s.registry.fits(row.id, row.a, row.b) for row in rows):
        raise another_log(s)


def another_log(s: Services) -> errors.Unavailable:
    """The error for rows that are not of the log in memory; has the watch look at the log.

    The client is asked to connect again.
    """
    s.store.log.suspect(is_behind=True)
    return errors.Unavailable("the log is another one; connect again", retry_ms=OPEN_RETRY_MS)


def merge(s: Services, user: User, row: ConvRow) -> Conversation:
    """Bring a row into memory; where the conversation is there, memory's head stays.

    Memory's head is what has been delivered. Where all conversations of a loaded user are in
    memory, one of theirs that is not is new, nothing of it was delivered, and all of it is a gap.
    Else sessions that may lack some of it are closed: they get it when they connect again.
    """
    registry = s.registry
    fresh = row.id not in registry.convs
    conv = registry.hold(row.id, row.a, row.b)
    if fresh and not any((one := registry.users.get(id)) is not None and one.loaded for id in (row.a, row.b)):
        conv.head, conv.na, conv.nb, conv.ts = row.head, row.na, row.nb, row.ts
        registry.touch(conv)
        if not registry.holds_all and (unproven := registry.loaded(conv, row.xid, row.started)):
            _close_sessions(s, unproven)
    elif row.head > conv.head and not conv.pending:
        # Committed and not delivered here: a batch of unknown outcome, or another node's
        s.delivery.gaps.look_up((conv.id,))
    if registry.latest is None or conv.ts > registry.latest.ts:
        registry.latest = conv
    conv.floor = max(conv.floor, row.floor)
    if fresh and conv.head == row.head:
        conv.advance(0, row.a_delivered, row.a_read)
        conv.advance(1, row.b_delivered, row.b_read)
    else:  # live sessions may not have these cursors, and an entry up to them may not be delivered
        s.delivery.receipts.moved(conv, 0, row.a_delivered, row.a_read)
        s.delivery.receipts.moved(conv, 1, row.b_delivered, row.b_read)
    return conv


def _close_sessions(s: Services, users: Iterable[User]) -> None:
    """Entries may be in the log that were not delivered to the sessions of these users.

    They were written by a node of before, whose last batch took longer than the start of this one,
    or by one beside this one that does not share Redis with it. Or PostgreSQL was restarted since
    the sessions began, and transaction ids prove nothing (core/snapshot.py).
    """
    s.metrics.conversations_unproven += 1
    for user in users:
        for session in list(user.sessions.values()):
            session.sink.close(errors.CloseCode.RESTART, "others may have written to the log; connect again")


def conversation_item(s: Services, user: User, row: ConvRow) -> dict[str, object]:
    """One conversation in the form of `welcome` and `conversations`, by memory's numbers.

    Where it is not in memory, nothing has changed since the row was read (core/conversations.py).
    """
    held = s.registry.convs.get(row.id)
    conv: Conversation | ConvRow = held or (merge(s, user, row) if s.registry.holds_all else row)
    mine, head = conv.side(user.id), conv.head
    delivered, read = (min(seq, head) for seq in conv.cursor(mine))
    peer_delivered, peer_read = (min(seq, head) for seq in conv.cursor(1 - mine))
    sent, seen, counted_at = (conv.nb, row.a_read_n, row.a_read) if mine == 0 else (conv.na, row.b_read_n, row.b_read)
    is_all_read = max(read + 1, conv.floor) > head
    if not is_all_read:
        # Another device may have read since: `unread` belongs to the cursor by which it was counted
        read = min(read, counted_at)
    notes, is_open = conv.a == conv.b, conv.open
    if not is_open:  # until a user has answered, the sender learns neither delivery nor reading
        peer_delivered = peer_read = 0
    return {
        "c": str(conv.id), "peer": conv.peer(user.id), "head": head, "floor": conv.floor, "ts": conv.ts,
        "delivered": delivered, "read": read,
        "peer_delivered": delivered if notes else peer_delivered, "peer_read": read if notes else peer_read,
        "unread": 0 if notes or is_all_read else max(0, sent - seen), "open": is_open,
    }  # fmt: skip
