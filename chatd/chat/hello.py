"""From `hello` to `welcome`: who is it, which conversations changed, and where each log starts on
this connection.

    hello ─► verify ─► attach to the user ─► list from PostgreSQL, page by page ─► welcome ... welcome ─► live
                            │ replaces the same device; the 11th device closes the longest idle

From `attach` on, live entries pass the session by and are remembered in `behind`
(chat/delivery.py), so nothing is missed while the welcome is made. An item tells the head as memory
has it in the very loop turn in which it is written: with a cursor the connection starts behind it
and is filled from the log, without one it starts at head + 1.

A hello of a user who is not in memory reads all rows of that user once; later ones read what
changed. Either reads page by page, each in the turn of its user among hellos
(postgres/fair_queue.py): a reconnect storm queues there and not in front of everybody's reads, and
an account with 20,000 conversations keeps nobody waiting for more than a page. Of a user one page
is read at a time, and a listing whose session has gone ends with its page.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import structlog

from chatd import errors, protocol
from chatd.addresses import counted_as
from chatd.chat.services import Services
from chatd.core import hello_rates
from chatd.core.conversation import Conversation
from chatd.core.hello_rates import retry_ms
from chatd.core.identity import Identity
from chatd.core.session import Session, State, User
from chatd.errors import CloseCode
from chatd.ids import ConvId, Seq, UserId
from chatd.postgres import mark
from chatd.postgres.rows import BEGIN, ConvRow
from chatd.protocol import Hello
from chatd.unicode_ids import new_user_id
from chatd.wire import framing

log = structlog.get_logger("opening")

WELCOME_ITEMS: Final = 200  # conversations a `welcome` frame: some 50 KB
RECEIPTS_A_TURN: Final = 500  # behind a welcome, before its client is asked for room again: some 64 KB
OPEN_RETRY_MS: Final = 1_000
OVERTAKEN_S_MAX: Final = 3.0
SURPLUS_S: Final = 0.3  # what one node says of its devices' activity is everywhere by then


class Listing(NamedTuple):
    """What the database said for a hello: the mark, the time (ms), and the rows to list."""

    mark: str
    now_ms: int
    rows: list[ConvRow]


async def open_session(s: Services, session: Session, hello: Hello, opened: Callable[[Session], None]) -> None:
    """Carry out a hello; `opened` is called once the last welcome frame is queued. Never raises."""
    if session.gone:
        return  # it left before this began: nobody would ever detach it
    try:
        identity = _identify(s, session, hello)
        # Before the first await: a reload that removes the key while this waits must find it
        # (net/revocation.py)
        session.checked_with(identity.key)
        await _check_name(s, identity.user)
    except errors.Refused as e:
        s.metrics.hellos_limited += e.code == "overloaded"
        _end(s, session, hello, e, _CLOSES.get(e.code, CloseCode.UNAUTHORIZED))
        return
    if _left(session):
        return
    user = _attach(s, session, hello, identity)
    s.presence.attach(user.id, session.device, s.steady.ms())
    await s.others.arrive(user.id, hello.watch)
    _come_early(s, session, hello)
    try:
        async with s.listings.turn(user.id):
            if _left(session):
                return  # it has left the queue: nobody is to wait behind it
            listing = await _list(s, session, hello)
            await _overtaken(s, hello, listing)
            presence = await s.presence_push.snapshot(session)
            await _welcome(s, session, hello, listing, presence)
    except errors.Retryable as e:
        if _left(session):
            return
        _end(s, session, hello, e, CloseCode.OVERLOADED)
        return
    seen = await s.presence_push.seen_since(session, presence)
    if session.state is not State.OPENING:
        return
    s.metrics.hellos += 1
    s.store.user_seen(user.id, s.clock.now_ms())
    # Before the requests that waited, because one of them may say `away`.
    s.presence_push.announce(s.presence.connect(user.id, session.device, hello.away, s.clock.now_ms()))
    close_displaced(s, user.id)
    if _left(session):
        return
    opened(session)
    if not session.live:
        return  # a request that waited for the welcome has ended it
    s.presence_push.push_changed(session, presence, seen)
    await _moved_meanwhile(s, session)
    if s.presence.elsewhere(user.id):
        s.tasks.spawn(s.others.look_back(user))


def _identify(s: Services, session: Session, hello: Hello) -> Identity:
    """Who it is.

    Raises Refused, Overloaded where their address or they themselves say hello too often.
    """
    now = s.clock.now()
    if wait := s.addresses.take(counted_as(session.sink.address), now):
        raise errors.Overloaded("too many hellos from this address: wait", retry_ms=retry_ms(wait))
    identity = s.tokens.verify(hello.token)
    if wait := hello_rates.of_user(s.user(identity.user), now):
        raise errors.Overloaded("too many hellos of this user: wait", retry_ms=retry_ms(wait))
    return identity


_CLOSES: Final = {
    "token_expired": CloseCode.TOKEN_EXPIRED,
    "overloaded": CloseCode.OVERLOADED,
    "unavailable": CloseCode.OVERLOADED,
}


async def _check_name(s: Services, user: UserId) -> None:
    """A name that could not become one today is let in where the database knows it: an upgrade
    shuts nobody out.

    Raises Unauthorized, and what the database's outage raises. Most names cost no query.
    """
    try:
        new_user_id(user)
    except ValueError as e:
        async with s.store.hello_turns.turn(user):
            known = await s.store.is_known(user)
        if not known:
            raise errors.Unauthorized(f"the token's `sub` is no user id: {e}") from None


def _come_early(s: Services, session: Session, hello: Hello) -> None:
    """Another node has the user, perhaps only for a grace time: it hears at once that they are on
    their way in, as a hello may take longer.
    """
    assert session.user is not None
    if not _left(session) and s.presence.elsewhere(session.user.id):
        s.presence_push.announce(s.presence.connect(session.user.id, session.device, hello.away, s.clock.now_ms()))


def _left(session: Session) -> bool:
    """Its connection has ended while we waited."""
    return session.gone


def _end(s: Services, session: Session, hello: Hello, error: errors.Refused, code: CloseCode) -> None:
    s.metrics.hello_refused(error.code)
    if session.state is not State.CLOSED:
        s.session_log.hello_refused(session, hello.device, error)
        session.sink.send(framing.encode_text(protocol.err(hello.id, error)))
        session.sink.close(code, error.code)


def _attach(s: Services, session: Session, hello: Hello, identity: Identity) -> User:
    """Make the session one of its user's; it holds the user from now on, and live entries are
    remembered for it.
    """
    user = s.user(identity.user)
    session.identify(user, hello, identity.exp_ms)
    s.presence.watch(session, (), hello.watch)
    old = user.sessions.get(hello.device)
    s.registry.attach(user, hello.device, session)
    if old is not None:
        old.sink.close(CloseCode.REPLACED, "the same device connected again")
    elif len(user.sessions) > s.settings.devices_max:
        idle = min((one for one in user.sessions.values() if one is not session), key=lambda one: one.active_at)
        idle.sink.close(CloseCode.TOO_MANY_DEVICES, "another device came and this was the longest idle")
    return user


def close_displaced(s: Services, id: UserId) -> None:
    """Another node told of devices of a user: let those of ours go that have connected there since,
    or are too many.

    All nodes decide by the same data.
    """
    user = s.registry.users.get(id)
    if user is None:
        return
    for device in s.presence.displaced(id):
        if (session := user.sessions.get(device)) is not None:
            session.sink.close(CloseCode.REPLACED, "the same device connected again")
    if id not in s.settling and s.presence.surplus(id, s.settings.devices_max):
        s.settling.add(id)
        s.tasks.spawn(_close_surplus(s, id))


async def _close_surplus(s: Services, id: UserId) -> None:
    """A user has too many devices: each node first says when its own were last active, as it knows
    better, and then all decide by that.
    """
    tell_activity(s, (id,), math.inf)
    try:
        await asyncio.sleep(SURPLUS_S)
    finally:
        s.settling.discard(id)
    if (user := s.registry.users.get(id)) is not None:
        for device in s.presence.surplus(id, s.settings.devices_max):
            if (session := user.sessions.get(device)) is not None:
                session.sink.close(CloseCode.TOO_MANY_DEVICES, "another device came and this was the longest idle")


def tell_activity(s: Services, users: Iterable[UserId], seconds: float) -> None:
    """Tell other nodes which devices of these users did something in the last `seconds`, and when."""
    now, steady_ms = s.clock.now(), s.steady.ms()
    for id in users:
        if (user := s.registry.users.get(id)) is not None:
            for device, session in user.sessions.items():
                if now - session.active_at < seconds:
                    s.presence.touch(id, device, steady_ms - int((now - session.active_at) * 1000))


# ---- the listing ---------------------------------------------------------------------------------


async def _list(s: Services, session: Session, hello: Hello) -> Listing:
    """Read the user's conversations into memory where they are not there, and find those to list."""
    user = session.user
    assert user is not None
    if user.unsure:
        raise errors.Unavailable("what the user has is being looked at again", retry_ms=OPEN_RETRY_MS)
    same = hello.epoch is None or hello.epoch == s.store.epoch
    named = hello.cursors if same else {}
    since = hello.since if same and mark.read(hello.since, s.store.epoch) is not None else None
    pages = s.others.pages()
    generation = s.store.log.generation
    heads: dict[ConvId, int] | None = {} if s.others.share_log and not user.loaded else None
    new_mark, now_ms, rows = await _rows(s, user, since, not user.loaded, list(named), session, heads)
    _check_log(s, generation)
    user.loaded, loaded, early, user.early = True, user.loaded, user.early, None
    if heads is not None:
        _passed_by(session, user, heads)
    counted = ahead(s, rows)
    if counted or early or s.others.pages() != pages:
        # Another node has written meanwhile, perhaps later than our snapshot and in a conversation
        # that was not known here yet.
        try:
            _, _, again = await _rows(s, user, new_mark, False, counted, session)
        except errors.Retryable:
            if s.store.log.generation == generation and not loaded:  # else nothing of the user is in memory any more
                if any(one is not session for one in user.sessions.values()):
                    user.unsure = True
                    s.tasks.spawn(_look_again(s, user, new_mark, generation))
                else:
                    user.loaded, user.early = False, early
            raise
        _check_log(s, generation)
        newer = {row.id for row in again}
        rows = [row for row in rows if row.id not in newer] + again
    return Listing(new_mark, now_ms, rows)


async def _look_again(s: Services, user: User, since: str, generation: int) -> None:
    """In place of a hello that could not: other sessions of the user have gone by its first
    listing, and what it missed is a gap to them.
    """
    while s.registry.users.get(user.id) is user and s.store.log.generation == generation:
        try:
            await _rows(s, user, since, False, [], None)
            break
        except errors.Retryable:
            await asyncio.sleep(OPEN_RETRY_MS / 1000)
    user.unsure = False


def _check_log(s: Services, generation: int) -> None:
    """Raises Unavailable if the log has moved since."""
    if s.store.log.generation != generation:
        raise errors.Unavailable("the log is another one since; connect again", retry_ms=OPEN_RETRY_MS)


def _passed_by(session: Session, user: User, heads: Mapping[ConvId, int]) -> None:
    """Remember what is in memory beyond the heads that the first listing of a user saw: nothing of
    it was pushed to this session.

    The listing of the other participant, with a later snapshot, has brought it: another node had
    written it meanwhile (see `merge`).
    """
    for conv in user.peers.values():
        if conv.head > (seen := heads.get(conv.id, 0)):
            session.miss(conv.id, seen)


def ahead(s: Services, rows: Iterable[ConvRow]) -> list[ConvId]:
    """Those whose cursors in memory are ahead of these rows, whose numbers of messages would not
    fit them: they are to be written, and read again.
    """
    convs = []
    for row in rows:
        if (conv := s.registry.convs.get(row.id)) is not None and (
            conv.a_read > row.a_read or conv.b_read > row.b_read
        ):
            s.store.cursor_moved(conv)
            convs.append(row.id)
    return convs


async def _overtaken(s: Services, hello: Hello, listing: Listing) -> None:
    """A client that comes from another node may have got more there than was delivered here yet:
    catch up, or it would get that again.

    Raises Unavailable.
    """
    await lift(s, listing.rows, hello.cursors)
    convs = s.registry.convs  # without those of a log that is another one since: the session has ended then
    if any(
        (conv := convs.get(row.id)) is not None and row.head > conv.head < hello.cursors.get(row.id, 0)
        for row in listing.rows
    ):
        raise errors.Unavailable("this node is behind the one you come from", retry_ms=OPEN_RETRY_MS)


async def lift(s: Services, rows: Iterable[ConvRow], cursors: Mapping[ConvId, Seq] = MappingProxyType({})) -> None:
    """Wait for what has not been delivered here yet, where somebody has got further than that: a
    cursor of these rows, or of `cursors`.

    An item must not name a head that is older than the cursors beside it. After `OVERTAKEN_S_MAX`
    the cursors are cut to the head (`listed`).
    """
    behind = []
    for row in rows:
        conv = s.registry.convs.get(row.id)
        # The row's cursors, too: what is ahead of the head in memory is not in memory's cursors yet
        # (Delivery.moved).
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


async def _rows(
    s: Services, user: User, since: str | None, everything: bool, named: list[ConvId], session: Session | None,
    heads: dict[ConvId, int] | None = None,
) -> tuple[str, int, list[ConvRow]]:  # fmt: skip
    """(mark, time, rows to list) of all pages; all rows that come are in memory then.

    `everything`: read those that did not change, too.

    `session`: for whom; once it has gone nothing more is read, and Unavailable is raised. `heads`:
    is given those of all rows.
    """
    first, now_ms, after = "", 0, BEGIN
    rows: list[ConvRow] = []
    while True:
        page = await s.store.list_changed(user.id, since, after, everything or since is None, named)
        # The first page's mark is the oldest: nothing slips between pages
        first, now_ms = first or page.mark, page.now_ms
        check_pairs(s, page.rows)
        for row in page.rows:
            merge(s, user, row)
        if heads is not None:
            heads.update((row.id, row.head) for row in page.rows)
        rows.extend(row for row in page.rows if since is None or row.changed or row.id in named)
        if page.next is None:
            return first, now_ms, rows
        if session is not None and session.gone:
            raise errors.Unavailable("nobody waits for this listing any more", retry_ms=OPEN_RETRY_MS)
        after = page.next


def check_pairs(s: Services, rows: Iterable[ConvRow]) -> None:
    """What the database lists is of the log that is in memory: only then may rows be merged.

    Raises Unavailable where it has moved.
    """
    if not all(s.registry.fits(row.id, row.a, row.b) for row in rows):
        raise another_log(s)


def another_log(s: Services) -> errors.Unavailable:
    """What was read cannot be of the log that is in memory: have it looked at, and tell the client
    to come again.
    """
    s.store.log.suspect(is_behind=True)
    return errors.Unavailable("the log is another one; connect again", retry_ms=OPEN_RETRY_MS)


def merge(s: Services, user: User, row: ConvRow) -> Conversation:
    """Bring a row into memory.

    Where the conversation was there, memory's head stands: it is what has been delivered.

    All conversations of a loaded user are in memory. So one that is not, and is theirs, is new:
    none of it was delivered, and all of it is a gap.
    """
    registry = s.registry
    fresh = row.id not in registry.convs
    conv = registry.hold(row.id, row.a, row.b)
    if fresh and not any((one := registry.users.get(id)) is not None and one.loaded for id in (row.a, row.b)):
        conv.head, conv.na, conv.nb, conv.ts = row.head, row.na, row.nb, row.ts
        registry.touch(conv)
    elif row.head > conv.head and not conv.pending:
        s.delivery.poke(conv)  # committed and never delivered here: a batch of unknown outcome, or another node's
    if registry.latest is None or conv.ts > registry.latest.ts:
        registry.latest = conv
    conv.floor = max(conv.floor, row.floor)
    if fresh and conv.head == row.head:
        conv.advance(0, row.a_delivered, row.a_read)
        conv.advance(1, row.b_delivered, row.b_read)
    else:  # sessions that are live may not have heard of it, and an entry that it speaks of may not have been delivered
        s.delivery.moved(conv, 0, row.a_delivered, row.a_read)
        s.delivery.moved(conv, 1, row.b_delivered, row.b_read)
    return conv


def listed(s: Services, user: User, row: ConvRow) -> dict[str, object]:
    """One conversation as `welcome` and `conversations` show it: memory's numbers where it has
    them.
    """
    conv = s.registry.convs.get(row.id) or merge(s, user, row)
    mine, head = conv.side(user.id), conv.head
    delivered, read = (min(seq, head) for seq in conv.cursor(mine))
    peer_delivered, peer_read = (min(seq, head) for seq in conv.cursor(1 - mine))
    sent, seen, counted_at = (conv.nb, row.a_read_n, row.a_read) if mine == 0 else (conv.na, row.b_read_n, row.b_read)
    is_all_read = max(read + 1, conv.floor) > head
    if not is_all_read:
        # Another device may have read since: `unread` is true of the cursor with which it was
        # counted
        read = min(read, counted_at)
    notes, is_open = conv.a == conv.b, conv.open
    if not is_open:  # a message that was not answered tells nobody when its receiver is there, nor when they read
        peer_delivered = peer_read = 0
    return {
        "c": str(conv.id), "peer": conv.peer(user.id), "head": head, "floor": conv.floor, "ts": conv.ts,
        "delivered": delivered, "read": read,
        "peer_delivered": delivered if notes else peer_delivered, "peer_read": read if notes else peer_read,
        "unread": 0 if notes or is_all_read else max(0, sent - seen), "open": is_open,
    }  # fmt: skip


# ---- the welcome ---------------------------------------------------------------------------------


async def _welcome(
    s: Services, session: Session, hello: Hello, listing: Listing, presence: list[dict[str, object]]
) -> None:
    """Send the pages.

    Each is made and queued in one loop turn; between them the connection may ask for a pause.
    """
    cursors = hello.cursors if hello.epoch is None or hello.epoch == s.store.epoch else {}
    rows = listing.rows
    first = _first(s, session, listing, presence)
    behind: list[ConvRow] = []
    for at in range(0, max(len(rows), 1), WELCOME_ITEMS):
        await s.delivery.drained(session)
        if session.state is not State.OPENING:
            return
        last = at + WELCOME_ITEMS >= len(rows)
        page = rows[at : at + WELCOME_ITEMS]
        items = [_item(s, session, row, cursors.get(row.id)) for row in page]
        behind += [row for row, item in zip(page, items, strict=True) if item["head"] < row.head]  # type: ignore[operator]
        facts = {"id": hello.id, **(first if at == 0 else {}), "conversations": items, "more": not last}
        if last:
            facts["since"] = _mark(s, hello, listing, behind)
        session.sink.send(framing.encode_text(protocol.frame("welcome", **facts)))


def _mark(s: Services, hello: Hello, listing: Listing, behind: list[ConvRow]) -> str:
    """What the client is to name next time.

    `behind`: rows of which the items told less, because it was not delivered here yet.

    It will be, on this connection. A client that leaves before has all that it was told, and need
    not name the conversation; the mark must not say that it has seen the rest. So it gets one of
    before that was written.
    """
    if not behind:
        return listing.mark
    same = hello.epoch is None or hello.epoch == s.store.epoch
    if (
        same
        and hello.since is not None
        and mark.read(hello.since, s.store.epoch) is not None
        and all(row.changed for row in behind)
    ):
        return hello.since
    return str(mark.of_all(s.store.epoch))


async def _moved_meanwhile(s: Services, session: Session) -> None:
    """Push the cursors that moved while the welcome was made; receipts are pushed to live sessions
    only.
    """
    for n, (id, side) in enumerate(session.take_moved(), 1):
        if (conv := s.registry.convs.get(id)) is not None:
            session.sink.send(framing.encode_text(receipt(conv, side)))
        if n % RECEIPTS_A_TURN == 0:
            await s.delivery.drained(session)
            if not session.live:
                return


def receipt(conv: Conversation, side: int) -> bytes:
    """The cursors of one side as a push."""
    return protocol.receipt(conv.id, *conv.names(side), *conv.cursor(side))


def _first(s: Services, session: Session, listing: Listing, presence: list[dict[str, object]]) -> Mapping[str, object]:
    """What the first page alone tells."""
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
    """One conversation of a welcome, and the place where it starts on this connection."""
    assert session.user is not None
    item = listed(s, session.user, row)
    conv = s.registry.convs[row.id]
    mine = conv.side(session.user.id)
    if item["read"] != min(conv.cursor(mine)[1], conv.head):
        session.cursor_moved(conv.id, mine)  # the cursor of now follows as a receipt
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
        session.filled(conv.id, start)
    else:
        session.caught_up(conv.id)  # what passed it by while it was opening is at or below this head
    return item
