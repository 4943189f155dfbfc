"""Typing: pushed to the peer's sessions here and to other nodes, at most once a second.

    Chat ──typed──┐                    ┌──► the peer's sessions; in notes to oneself one's others
    Relay ─heard──┴──► Pace ──► _push ─┴──► other nodes, if the typing session is here

Ten devices that type a hundred times a second in one conversation cost each of the peer's devices
one push a second. A push that was held back is sent at the end of the second, unless that side has
sent an entry since: an entry ends typing at the receiver.
"""

from __future__ import annotations

from typing import NamedTuple

from chatd import protocol
from chatd.chat.services import Services
from chatd.core.coalescing import TYPING_S, Pace
from chatd.core.conversation import Conversation
from chatd.core.session import Session, State
from chatd.ids import ConvId
from chatd.loop.alarm import Alarm
from chatd.wire.frames import encode_text


class _Typed(NamedTuple):
    """`session`: the one that typed, None: on another node. `sent`: messages of that side then."""

    conv: Conversation
    side: int
    session: Session | None
    sent: int


class TypingPush:
    """Call `tick` at the time that `alarm` is given, and at `next_due`."""

    def __init__(self, services: Services, alarm: Alarm) -> None:
        self._s, self._alarm = services, alarm
        self._pace: Pace[tuple[ConvId, int], _Typed] = Pace(TYPING_S)

    def typed(self, conv: Conversation, side: int, session: Session) -> None:
        """A session here types in an open conversation."""
        self._offer(_Typed(conv, side, session, _sent(conv, side)))

    def heard(self, conv: Conversation, side: int) -> None:
        """A session of another node types."""
        if conv.open:
            self._offer(_Typed(conv, side, None, _sent(conv, side)))

    def tick(self) -> None:
        """Push what was held back long enough."""
        for _, typed in self._pace.due(self._s.clock.now(), self._is_current):
            self._push(typed)
        self._s.metrics.typing_merged = self._pace.merged

    def next_due(self) -> float | None:
        """When `tick` is due (s, monotonic); None: nothing is held back."""
        return self._pace.next_due()

    def _is_current(self, typed: _Typed) -> bool:
        """Whether nothing was sent since, and the log is the same."""
        return self._s.registry.convs.get(typed.conv.id) is typed.conv and _sent(typed.conv, typed.side) == typed.sent

    def _offer(self, typed: _Typed) -> None:
        if self._pace.offer((typed.conv.id, typed.side), typed, self._s.clock.now()):
            self._push(typed)
        self._alarm.by(self._pace.next_due())

    def _push(self, typed: _Typed) -> None:
        conv, side, session, _ = typed
        peer = conv.b if side == 0 else conv.a
        other = self._s.registry.users.get(peer)
        payload = protocol.typing(conv.id, *conv.names(side))
        if other is not None and other.sessions:
            frame = encode_text(payload)
            for one in other.sessions.values():
                if one is not session and one.state is State.LIVE:
                    one.sink.send(frame)
        if session is not None:
            self._s.others.typing(conv, side, payload)


def _sent(conv: Conversation, side: int) -> int:
    return conv.nb if side else conv.na
