"""What this node holds of one user, for `chatd user show` (ops/user_report.py). Pure.

It has no message. All numbers are of this loop turn: queues, heads delivered here, and cursors that
may not be written yet.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final, cast

from chatd.core.session import Session, State

if TYPE_CHECKING:
    from chatd.core.conversation import Conversation
    from chatd.core.conversations import Registry
    from chatd.core.session import User
    from chatd.ids import UserId
    from chatd.net.connection import ClientConnection

CONVERSATIONS_MAX: Final = 200  # a user's latest ones are shown


def about_user(registry: Registry, id: UserId, *, now: float, now_ms: int) -> dict[str, object]:
    """What `GET /user` of the admin port answers. `held`: whether the user is in memory.

    `now`: seconds, monotonic, by the sessions' clock. `now_ms`: ms since 1970.
    """
    user = registry.users.get(id)
    if user is None:
        return {"held": False, "sessions": [], "conversations": []}
    latest = heapq.nlargest(CONVERSATIONS_MAX, user.peers.values(), key=lambda conv: conv.ts)
    return {
        "held": True,
        "sessions": [_session(device, session, now, now_ms) for device, session in user.sessions.items()],
        "conversations": [_conversation(user, conv) for conv in latest],
    }


def _session(device: str, session: Session, now: float, now_ms: int) -> dict[str, object]:
    connection = cast("ClientConnection", session.sink)
    return {
        **connection.facts(),
        "device": device,
        "state": session.state.value,
        "since_ms": now_ms - int((now - connection.since) * 1000),
        "active_ms": now_ms - int((now - session.active_at) * 1000),
        "exp_ms": session.exp_ms,
        "catching_up": len(session.behind or ()) if session.state is State.LIVE else 0,
        "requests_waiting": len(session.deferred or ()) + session.reads,
        "blocked": len(session.order.blocked),
        "watching": len(session.watching),
    }


def _conversation(user: User, conv: Conversation) -> dict[str, object]:
    delivered, read = conv.cursor(conv.side(user.id))
    return {
        "c": str(conv.id), "peer": conv.peer(user.id), "head": conv.head, "delivered": delivered, "read": read,
        "pending": conv.pending, "has_gap": conv.gap is not None,
    }  # fmt: skip
