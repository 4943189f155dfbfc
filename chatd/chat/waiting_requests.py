"""Requests that wait because the conversation of an earlier one is being loaded.

    Chat.handle ──NotHeld──► wait ──chat/loading.py──► go on: handle it, and those behind it
                  └── later requests of the session ──► takes: behind it

All requests of a session keep their order: entries of a conversation must, whether they name it by
its id or by the peer, and which is which is known only once it is loaded. What the requests behind
the first one name is loaded by the same query. If it cannot be loaded, each that needs it is
refused, and an entry blocks its conversation until it is sent again (core/send_order.py), as one
that fails in its lane.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from chatd import errors, protocol
from chatd.chat.loading import Loading
from chatd.chat.send_errors import not_queued
from chatd.chat.services import Services
from chatd.core.conversations import Registry
from chatd.core.effects import Effect, End, Reply, Throttled
from chatd.core.send_order import nameless
from chatd.core.session import DEFERRED_MAX, Session, State
from chatd.errors import CloseCode
from chatd.ids import ConvId, UserId
from chatd.protocol import Entering
from chatd.wire.frames import encode_text

log = structlog.get_logger("chat")

AHEAD_MAX: Final = 100  # conversations of a session that one query loads


class WaitingRequests:
    """Of all sessions of a node. `handle` carries out a request: `Chat.handle`."""

    def __init__(self, services: Services, loading: Loading, handle: Callable[[Session, Effect, float], None]) -> None:
        self._s, self._loading, self._handle = services, loading, handle
        self._sessions = 0  # with requests that wait
        self._none = asyncio.Event()
        self._none.set()
        self._failing: errors.Retryable | None = None  # while those behind a failed one are tried

    async def idle(self) -> None:
        """Wait until no request waits."""
        await self._none.wait()

    @property
    def sessions(self) -> int:
        """How many have requests that wait."""
        return self._sessions

    def takes(self, session: Session, effect: Effect, now: float) -> bool:
        """Put a request behind those that wait; False if it is to be carried out at once.

        Only of a session in which one waits.
        """
        waiting = session.waiting
        if waiting is None or type(effect) is End:
            return False
        if len(waiting) >= DEFERRED_MAX:
            session.sink.close(CloseCode.OVERLOADED, "too many requests wait for a conversation")
            return True
        waiting.append((effect, now))
        if len(waiting) <= AHEAD_MAX:
            self._look_ahead(session, effect)
        return True

    def _look_ahead(self, session: Session, effect: Effect) -> None:
        request = effect.request if isinstance(effect, Throttled) else effect
        c, to = getattr(request, "c", None), getattr(request, "to", None)
        user, convs = session.user, self._s.registry.convs
        assert user is not None
        if c is not None and c not in convs:
            self._loading.seek(user, c)
        elif to is not None and to not in user.peers:
            self._loading.seek(user, to)

    def wait(self, session: Session, effect: Effect, now: float, key: ConvId | UserId) -> None:
        """Carry out a request, of which nothing is done yet, once what it names was looked for."""
        assert session.user is not None
        metrics = self._s.metrics
        metrics.requests -= 1  # it counts once it is carried out
        metrics.sends -= isinstance(effect, Entering)
        metrics.frames_throttled -= isinstance(effect, Throttled)
        if self._failing is not None:
            self._refuse(session, effect, key, self._failing)
            return
        session.waiting = deque([(effect, now)])
        self._sessions += 1
        self._none.clear()
        self._loading.seek(session.user, key, partial(self._go_on, session, key))

    def _go_on(self, session: Session, key: ConvId | UserId, error: errors.Retryable | None) -> None:
        """What the first one names is there, or missing. Never raises."""
        waiting, session.waiting = session.waiting, None
        self._sessions -= 1
        user = session.user
        if waiting is not None and user is not None and session.state is State.LIVE:
            try:
                self._carry_out(session, waiting, (user.id, key), error)
            except Exception:  # a bug must not affect other sessions: it is logged, and this one is closed
                log.exception("request.bug", user=user.id)
                session.sink.close(CloseCode.INTERNAL, "internal error")
            finally:
                self._failing = self._s.registry.sought = None
        if not self._sessions:
            self._none.set()

    def _carry_out(
        self, session: Session, waiting: deque[tuple[Effect, float]], sought: tuple[UserId, ConvId | UserId],
        error: errors.Retryable | None,
    ) -> None:  # fmt: skip
        if error is None:
            self._s.registry.sought = sought
            self._handle(session, *waiting.popleft())
            self._s.registry.sought = None
        else:
            self._failing = error
        while waiting and session.waiting is None and session.state is State.LIVE:
            self._handle(session, *waiting.popleft())
        if session.waiting is not None:  # one of them waits, and the rest behind it
            session.waiting.extend(waiting)

    def _refuse(self, session: Session, effect: Effect, key: ConvId | UserId, error: errors.Retryable) -> None:
        request = effect.request if isinstance(effect, Throttled) else effect
        assert request is not None
        assert not isinstance(request, Reply | End)
        refusal: errors.Refused = error
        if isinstance(request, Entering):
            peer = key if isinstance(key, str) else nameless(key)
            refusal = not_queued(session, peer, request, error)
            self._s.metrics.sends += 1
        self._s.metrics.requests += 1
        self._s.metrics.error(refusal.code)
        session.sink.send(encode_text(protocol.err(request.id, refusal)))


def give_up(registry: Registry, session: Session, request: protocol.Skip) -> None:
    """Give up an entry, also where its conversation could not be loaded. Raises as `find`."""
    user, peer, order = session.user, request.to, session.order
    assert user is not None
    if peer is None:
        assert request.c is not None
        peer = nameless(request.c)
        if peer not in order.blocked:
            peer = registry.find(user, request.c, None).peer(user.id)
    elif order.has_nameless:  # it may be this conversation that is blocked by its id
        if (conv := user.peers.get(peer)) is not None:
            order.known(conv.id, peer)
        else:
            registry.need(user, peer)
    order.skip(peer, request.cid)
