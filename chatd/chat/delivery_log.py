"""Debug lines for each entry that this node delivers: did it get here, and to which devices.

    entry.delivered   conv, seq, cid
                      by: commit (written here), bus (from another node), log (gap fill), resync
                      to: the devices that got it now
                      later: devices that are behind, and get it in order

Callers check `log.DEBUG_ON` first: without debug, a delivery costs a look at a bool and no call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import structlog

from chatd.core.session import Session, State

if TYPE_CHECKING:
    from chatd.core.conversation import Conversation
    from chatd.core.conversations import Registry
    from chatd.ids import ConvId
    from chatd.protocol import Stored

log = structlog.get_logger("delivery")


def delivered(registry: Registry, conv: Conversation, seq: int, cid: str, by: str) -> None:
    """An entry was pushed to all sessions of both users."""
    to: list[str] = []
    later: list[str] = []
    for id in sorted({conv.a, conv.b}):
        if (user := registry.users.get(id)) is not None:
            for device, session in user.sessions.items():
                is_behind = session.state is not State.LIVE or (
                    session.behind is not None and conv.id in session.behind
                )
                (later if is_behind else to).append(f"{id}/{device}")
    log.debug("entry.delivered", conv=conv.id, seq=seq, cid=cid, by=by, to=to, later=later)


def filled(session: Session, conv: ConvId, entries: Iterable[Stored]) -> None:
    """A session that was behind got these entries from the log."""
    assert session.user is not None
    for e in entries:
        log.debug(
            "entry.delivered",
            conv=conv,
            seq=e.seq,
            cid=e.cid,
            by="resync",
            to=[f"{session.user.id}/{session.device}"],
            later=[],
        )
