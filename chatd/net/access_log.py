"""Logs connections and sessions: who, from where, for how long, why it ended, what was refused.

    session.opened      after `welcome`
    session.closed      whatever ended it; also a connection without a hello
    connection.refused  no room, no handshake, no hello
    hello.refused       a hello was answered with an error
    refresh.refused     a new token was not accepted; the session stays
    proxy.unnamed       all clients seem to have one address
    proxy.headers_differ  the two headers of proxies name different clients

Clients can cause most of these lines, and one costs some 20 us to write. So each kind has a token
bucket: lines over its rate are dropped and counted (`chatd_log_lines_dropped_total`), and the next
line of that kind says how many. The metrics count all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, cast

import structlog

from chatd import addresses
from chatd.core.rate_limit import TokenBucket
from chatd.errors import CloseCode, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from chatd.core.session import Session
    from chatd.metrics import Metrics

log = structlog.get_logger("connection")

SESSIONS_PER_S: Final = 200.0  # lines of users with a valid token: 0.4 % of a core
SESSIONS_BURST: Final = 2_000
STRANGERS_PER_S: Final = 2.0
STRANGERS_BURST: Final = 20
KEY_REMOVED: Final = "the key of this token was removed"  # a close reason, sent to the client as well
CROWD: Final = 50  # connections at once from one private address: it is a proxy, or a test

_CODES: Final = frozenset(CloseCode)
_CAUSES: Final = {KEY_REMOVED: "key_removed"}  # by close reason: counted apart from others of their code


class Accepted(Protocol):
    """What the log needs of a connection."""

    number: int  # of this node's connections
    address: str


class _Lines:
    """The token bucket of one kind of line."""

    __slots__ = ("_bucket", "_metrics", "left_out")

    def __init__(self, per_s: float, burst: int, metrics: Metrics) -> None:
        self._bucket, self._metrics, self.left_out = TokenBucket(per_s, burst), metrics, 0

    def may(self, now: float) -> bool:
        if self._bucket.take(now):
            return True
        self.left_out += 1
        self._metrics.log_lines_dropped += 1
        return False

    def facts(self) -> dict[str, int]:
        """The fields with which the next line reports those that were dropped before it."""
        n, self.left_out = self.left_out, 0
        return {"left_out": n} if n else {}


class AccessLog:
    """The access log of a node. Implements `ports.SessionLog`.

    `incarnation` makes the ids of connections differ between nodes. `names_proxies`: the setting
    `trusted_proxies` is set.
    """

    def __init__(self, metrics: Metrics, incarnation: str, now: Callable[[], float], *, names_proxies: bool) -> None:
        self._metrics, self._incarnation, self._now, self._names_proxies = metrics, incarnation, now, names_proxies
        self._sessions = _Lines(SESSIONS_PER_S, SESSIONS_BURST, metrics)
        self._strangers = _Lines(STRANGERS_PER_S, STRANGERS_BURST, metrics)
        self._refusals = _Lines(STRANGERS_PER_S, STRANGERS_BURST, metrics)
        self._crowd_logged = self._differ_logged = False

    def id(self, number: int) -> str:
        """A connection's id in the log and in `chatd user show`."""
        return f"{self._incarnation[:8]}-{number}"

    def opened(self, session: Session) -> None:
        assert session.user is not None
        if self._sessions.may(self._now()):
            connection = cast("Accepted", session.sink)
            who = {"id": self.id(connection.number), "user": session.user.id, "device": session.device}
            log.info("session.opened", **who, address=connection.address, **self._sessions.facts())

    def closed(
        self,
        session: Session,
        number: int,
        address: str,
        code: int,
        reason: str,
        *,
        since: float,
        now: float,
        bytes_in: int,
        bytes_out: int,
    ) -> None:
        """`code` 0: the connection was lost. `since`, `now`: seconds."""
        name = CloseCode(code).name.lower() if code in _CODES else "other" if code else "lost"
        # A client may send any code, so only known ones become a label.
        self._metrics.closed(_CAUSES.get(reason, name), code if code in _CODES else 0)
        lines = self._strangers if session.user is None else self._sessions
        if not lines.may(now):
            return
        log.info(
            "session.closed",
            id=self.id(number),
            user=session.user.id if session.user is not None else None,
            device=session.device or None,
            address=address,
            code=code or None,
            name=name,
            reason=reason,
            duration_s=round(now - since, 3),
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            **lines.facts(),
        )

    def hello_refused(self, session: Session, device: str, error: Refused) -> None:
        if self._refusals.may(self._now()):
            connection = cast("Accepted", session.sink)
            who = {"id": self.id(connection.number), "device": device, "address": connection.address}
            log.info("hello.refused", **who, code=error.code, reason=str(error), **self._refusals.facts())

    def refresh_refused(self, session: Session, error: Refused) -> None:
        assert session.user is not None
        if self._refusals.may(self._now()):
            connection = cast("Accepted", session.sink)
            who = {"id": self.id(connection.number), "user": session.user.id, "device": session.device}
            log.info("refresh.refused", **who, code=error.code, reason=str(error), **self._refusals.facts())

    def refused(self, reason: str, address: str, now: float) -> None:
        """A connection that never became a session.

        `address` is empty if it ended before it was read, as health checks of balancers do.
        """
        self._metrics.refused(reason)
        if address and self._refusals.may(now):
            log.info("connection.refused", reason=reason, address=address, **self._refusals.facts())

    def counted(self, address: str, n: int, limit: int) -> None:
        """This address has `n` connections now, the one that asks for room included."""
        if (n < CROWD and n <= limit) or self._crowd_logged or self._names_proxies or not addresses.is_private(address):
            return
        self._crowd_logged = True
        log.warning(
            "proxy.unnamed",
            address=address,
            connections=n,
            setting="trusted_proxies",
            msg="many connections from one private address: is it a proxy? Name it in trusted_proxies,"
            " or all its clients share one limit by address",
        )

    def headers_differ(self, address: str) -> None:
        """X-Forwarded-For and Forwarded name different clients, so the proxy's address is used."""
        if not self._differ_logged:
            self._differ_logged = True
            log.warning(
                "proxy.headers_differ",
                address=address,
                setting="forwarded_header",
                msg="a request had X-Forwarded-For and Forwarded, and they differ:"
                " name in forwarded_header the one that your proxy writes",
            )
