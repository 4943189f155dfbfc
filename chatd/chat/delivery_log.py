"""A line at debug for each entry that goes out on this node, whichever way it came: "did it get
here, and to which devices".

    entry.delivered   conv, seq, cid    by: commit (written here), bus (another node told), log (read to fill a gap), resync
                                        to: the devices that got it now    later: those that are behind, and get it in order

Callers look at `log.DEBUG_ON` first: without debug, a delivery costs one look at a bool and no
call.
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


def told(registry: Registry, conv: Conversation, seq: int, cid: str, by: str) -> None:
    """An entry went to all sessions of both users."""
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
    """A session that was behind got these from the log."""
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
