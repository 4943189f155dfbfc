"""Writes the log lines of the pipeline of sends, which itself has no logger and no clock.

limit.hit      info, a few a second at most, so that a flood does not fill the log
send.err       debug: an item that was in a lane is answered with an error
entering.bug   error, with the traceback
"""

from __future__ import annotations

from typing import Final

import structlog

from chatd import errors
from chatd import log as logs
from chatd.core.batch import Item
from chatd.core.rate_limit import TokenBucket
from chatd.ids import UserId

log = structlog.get_logger("delivery")
log_of_bugs = structlog.get_logger("entering")

HITS_LOGGED_PER_S: Final = 5.0
HITS_LOGGED_BURST: Final = 20


class SendLines:
    """Implements `ports.SendLog`."""

    def __init__(self) -> None:
        self._hits_logged = TokenBucket(HITS_LOGGED_PER_S, HITS_LOGGED_BURST)

    def limit_hit(self, item: Item, now: float) -> None:
        if self._hits_logged.take(now):
            log.info("limit.hit", user=_user(item), conv=item.conv.id, again=item.resent_early)

    def refused(self, item: Item, error: errors.Refused) -> None:
        if logs.DEBUG_ON:
            log.debug("send.err", user=_user(item), conv=item.conv.id, id=item.id, code=error.code)

    def bug(self, user: UserId, error: Exception) -> None:
        log_of_bugs.error("entering.bug", user=user, exc_info=error)


def _user(item: Item) -> UserId | None:
    return None if item.session.user is None else item.session.user.id
