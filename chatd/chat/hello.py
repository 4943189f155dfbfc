"""From `hello` to `welcome`: authentication, the user's conversations, the start of each log.

    hello ─► verify ─► attach the session ─► listing.py, by pages ─► welcome.py ─► live
                            │ replaces the same device; over `devices_max` the longest idle ends

From `attach` on, live entries are not pushed to the session but remembered in `behind`
(chat/delivery.py), so nothing is missed while the welcome is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from chatd import errors, protocol
from chatd.addresses import counted_as
from chatd.chat import device_limit
from chatd.chat.listing import catch_up, read_listing, seek_changed
from chatd.chat.services import Services
from chatd.chat.welcome import push_moved, send_welcome
from chatd.core import hello_rates
from chatd.core.hello_rates import retry_ms
from chatd.core.identity import Identity
from chatd.core.session import Session, State, User
from chatd.errors import CloseCode
from chatd.ids import UserId
from chatd.protocol import Hello
from chatd.unicode_ids import new_user_id
from chatd.wire.frames import encode_text


async def open_session(s: Services, session: Session, hello: Hello, opened: Callable[[Session], None]) -> None:
    """Carry out a hello. Never raises.

    `opened` is called once the last welcome frame is queued.
    """
    if session.gone:
        return  # its connection has ended already: nothing would detach it
    try:
        identity = _identify(s, session, hello)
        # Before the first await: a reload that removes the key during it must find the session
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
    _announce_early(s, session, hello)
    try:
        swept = await seek_changed(s, session, hello)
        async with s.listings.turn(user.id):
            if _left(session):
                return  # gone while it waited: the next one begins
            listing = await read_listing(s, session, hello, swept)
            session.listed(listing.position)
            await catch_up(s, hello, listing.rows)
            await s.presence_push.learn(session, hello.watch, listing.rows, is_all=listing.is_all)
            presence = await s.presence_push.snapshot(session)
            await send_welcome(s, session, hello, listing, presence)
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
    # Before the requests that waited, because one of them may say `away`
    s.presence_push.announce(s.presence.connect(user.id, session.device, hello.away, s.clock.now_ms()))
    device_limit.close_displaced(s, user.id)
    if _left(session):
        return
    opened(session)
    if not session.live:
        return  # a request that waited for the welcome has ended it
    s.presence_push.push_changed(session, presence, seen)
    await push_moved(s, session)
    if s.presence.elsewhere(user.id):
        s.tasks.spawn(s.others.look_back(user))


def _identify(s: Services, session: Session, hello: Hello) -> Identity:
    """Check the token; gives whose it is.

    Raises Refused; Overloaded where this address or this user says hello too often.
    """
    now = s.clock.now()
    if wait := s.addresses.take(counted_as(session.sink.address), now):
        raise errors.Overloaded("too many hellos from this address: wait", retry_ms=retry_ms(wait))
    identity = s.keys_in_force.verify(hello.token)
    if wait := hello_rates.of_user(s.user(identity.user), now):
        raise errors.Overloaded("too many hellos of this user: wait", retry_ms=retry_ms(wait))
    return identity


_CLOSES: Final = {
    "token_expired": CloseCode.TOKEN_EXPIRED,
    "overloaded": CloseCode.OVERLOADED,
    "unavailable": CloseCode.OVERLOADED,
}


async def _check_name(s: Services, user: UserId) -> None:
    """Admit a name that today's rules refuse only if the database knows it.

    So an upgrade shuts no user out. Raises Unauthorized; Unavailable, Overloaded. Names that the
    rules allow cost no query.
    """
    try:
        new_user_id(user)
    except ValueError as e:
        async with s.store.hello_turns.turn(user):
            known = await s.store.is_known(user)
        if not known:
            raise errors.Unauthorized(f"the token's `sub` is no user id: {e}") from None


def _announce_early(s: Services, session: Session, hello: Hello) -> None:
    """Announce the user at once if another node has them, perhaps only for a grace time.

    The rest of a hello may take longer than that.
    """
    assert session.user is not None
    if not _left(session) and s.presence.elsewhere(session.user.id):
        s.presence_push.announce(s.presence.connect(session.user.id, session.device, hello.away, s.clock.now_ms()))


def _left(session: Session) -> bool:
    """Whether the connection has ended during a wait."""
    return session.gone


def _end(s: Services, session: Session, hello: Hello, error: errors.Refused, code: CloseCode) -> None:
    s.metrics.hello_refused(error.code)
    if session.state is not State.CLOSED:
        s.session_log.hello_refused(session, hello.device, error)
        session.sink.send(encode_text(protocol.err(hello.id, error)))
        session.sink.close(code, error.code)


def _attach(s: Services, session: Session, hello: Hello, identity: Identity) -> User:
    """Make the session one of its user's. It holds the user from now on.

    Live entries are remembered for it in `behind`.
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
