"""The errors that answer a send, edit or delete: over the rate, failed, refused, or blocked.

    SendPipeline ── not queued ──────────────────────────┐
    lane ── limited, failed, refused, blocked ──► SendErrors ──► `err` to the sender

core/send_order.py learns of each, and decides what follows for later entries of the conversation.
What an item held is given back here (`Item.answered`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from chatd import errors, protocol
from chatd.chat.ports import SendCounts, SendLog
from chatd.core import send_order
from chatd.core.batch import Item
from chatd.core.session import Session
from chatd.errors import CloseCode
from chatd.ids import UserId
from chatd.postgres.append_answer import What
from chatd.protocol import Entering
from chatd.wire.frames import encode_text

RETRY_MS: Final = 1_000

REFUSALS: Final[dict[What, Callable[[], errors.ClientFault]]] = {
    What.NO_MESSAGE: lambda: errors.NoMessage("`ref` is not a message that is still kept"),
    What.NOT_AUTHOR: lambda: errors.NotAuthor("only its author changes a message"),
    What.DELETED: lambda: errors.Deleted("the message was deleted before"),
    What.TOO_LATE: lambda: errors.TooLate("the time to edit this message is over"),
}


class SendErrors:
    """The half of `SendPipeline` that answers what made no entry."""

    def __init__(self, counts: SendCounts, log: SendLog) -> None:
        self._counts, self._log = counts, log

    # ---- outcomes of items: see `append_answer.Outcome` ------------------------------------------

    def _limited(self, item: Item, now: float) -> None:
        session = item.session
        user = session.user
        assert user is not None
        if not item.answered(give_back=True):
            return
        self._counts.limit_hits += 1
        self._log.limit_hit(item, now)
        try:
            verdict = session.own_order().limited(
                item.peer, item.cid, item.id, session.last_id, user, now, resent_early=item.resent_early
            )  # fmt: skip
        except errors.Blocked as e:
            self._error(item, e)
            return
        if verdict.close:
            session.sink.close(CloseCode.RATE_LIMITED, "kept sending in spite of retry_ms")
            return
        rate = f"over {user.window.max_events} messages in {user.window.period_s:g} s: wait"
        self._error(item, errors.RateLimited(rate, retry_ms=max(1, math.ceil(verdict.wait_s * 1000))))

    def _changes_nothing(self, item: Item, why: What) -> None:
        """An edit or delete that the log refuses."""
        if item.answered():
            self._error(item, REFUSALS[why]())

    def failed(self, items: list[Item], error: errors.Retryable, *, is_unknown: bool = False) -> None:
        """The outcome is unknown, or nothing was done: the client sends again.

        What may have been written keeps its slot of the rate. If the slot were given back and taken
        by others, more than the rate would pass. A retry that turns out to be a `dup` gives back
        its own.
        """
        for item in items:
            for one in (item, *(item.twins or ())):
                # A cid is written once: its twins make nothing
                if not one.answered(give_back=not is_unknown or one is not item):
                    continue
                session = one.session
                self._error(one, session.own_order().failed(one.peer, one.cid, one.id, session.last_id, error))

    def refused(self, item: Item) -> None:
        """The database refuses this item for good."""
        error = errors.DataRefused("the database refused this entry; another try will not help")
        for one in (item, *(item.twins or ())):
            if one.answered():
                self._error(one, error)

    def blocked(self, items: list[Item]) -> None:
        """An earlier one in the conversation failed after these were queued."""
        for item in items:
            if item.answered(give_back=True):
                self._error(item, send_order.blocked(item.session.order.overtaken(item.peer, item.id)))

    # ---- answers ---------------------------------------------------------------------------------

    def _error(self, item: Item, error: errors.Refused) -> None:
        """To the sender of an item that was in a lane."""
        self._log.refused(item, error)
        self._refuse(item.session, item.id, error)

    def _refuse(self, session: Session, id: int, error: errors.Refused) -> None:
        error.__traceback__ = None  # as in Chat.handle
        self._counts.sends_err += 1
        self._counts.error(error.code)
        session.sink.send(encode_text(protocol.err(id, error)))


def not_queued(session: Session, peer: UserId, entry: Entering | Item, error: errors.Retryable) -> errors.Refused:
    """An entry does not get into a lane: the error to answer with."""
    return session.own_order().not_queued(peer, entry.cid, entry.id, error)


def draining_error() -> errors.Unavailable:
    return errors.Unavailable("this server is draining; reconnect", retry_ms=RETRY_MS)


def full_error() -> errors.Overloaded:
    return errors.Overloaded("the server's queue is full", retry_ms=RETRY_MS)


def other_log_error() -> errors.Unavailable:
    return errors.Unavailable("the log is another one: connect again", retry_ms=RETRY_MS)
