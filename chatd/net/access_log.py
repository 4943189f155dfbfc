"""What the log tells of connections and sessions: who came, from where, how long, why it ended, and
who was refused.

    session.opened      after `welcome`                      session.closed    whatever ended it; also one without a hello
    connection.refused  no room, no handshake, no hello      proxy.unnamed     all clients seem to be one address
    hello.refused       answered with an error               refresh.refused   a new token was not taken; the session stays

A client can cause all of these lines, and writing one costs some 20 us. So each kind has a bucket:
past it lines are left out and counted (`chatd_log_lines_dropped_total`), and the next line of that
kind says how many. The metrics count all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from chatd import addresses
from chatd.core.rate_limit import TokenBucket
from chatd.errors import CloseCode, Refused

if TYPE_CHECKING:
    from chatd.core.session import Session
    from chatd.metrics import Metrics

log = structlog.get_logger("connection")

SESSIONS_PER_S: Final = 200.0  # of users who have shown a token: 0.4 % of a core
SESSIONS_BURST: Final = 2_000
STRANGERS_PER_S: Final = 2.0
STRANGERS_BURST: Final = 20
KEY_REMOVED: Final = "the key of this token was removed"  # to the client as well
CROWD: Final = 50  # connections at once from one private address: a proxy, or a test

_CODES: Final = frozenset(CloseCode)
_CAUSES: Final = {KEY_REMOVED: "key_removed"}  # by reason: ends that are counted apart from others of their code


class _Lines:
    """The bucket of one kind of line."""

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
        """What the next line says of those before it."""
        n, self.left_out = self.left_out, 0
        return {"left_out": n} if n else {}


class AccessLog:
    """One of a node.

    `boot` makes the ids of connections differ between nodes; `names_proxies`: `trusted_proxies` is
    set.
    """

    def __init__(self, metrics: Metrics, boot: str, *, names_proxies: bool) -> None:
        self._metrics, self._boot, self._names_proxies = metrics, boot, names_proxies
        self._sessions = _Lines(SESSIONS_PER_S, SESSIONS_BURST, metrics)
        self._strangers = _Lines(STRANGERS_PER_S, STRANGERS_BURST, metrics)
        self._refusals = _Lines(STRANGERS_PER_S, STRANGERS_BURST, metrics)
        self._crowd_told = self._differ_told = False

    def id(self, number: int) -> str:
        """A connection's name in the log and for `chatd user show`."""
        return f"{self._boot[:8]}-{number}"

    def opened(self, session: Session, number: int, address: str, now: float) -> None:
        assert session.user is not None
        if self._sessions.may(now):
            facts = self._sessions.facts()
            log.info(
                "session.opened",
                id=self.id(number),
                user=session.user.id,
                device=session.device,
                address=address,
                **facts,
            )

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
        self._metrics.closed(_CAUSES.get(reason, name), code if code in _CODES else 0)  # a client may say any code
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

    def hello_refused(self, number: int, address: str, device: str, error: Refused, now: float) -> None:
        if self._refusals.may(now):
            facts = self._refusals.facts()
            log.info(
                "hello.refused",
                id=self.id(number),
                device=device,
                address=address,
                code=error.code,
                reason=str(error),
                **facts,
            )

    def refresh_refused(self, session: Session, number: int, error: Refused, now: float) -> None:
        assert session.user is not None
        if self._refusals.may(now):
            facts = self._refusals.facts()
            who = {"id": self.id(number), "user": session.user.id, "device": session.device}
            log.info("refresh.refused", **who, code=error.code, reason=str(error), **facts)

    def refused(self, reason: str, address: str, now: float) -> None:
        """A connection that never became a session.

        No address: it had left before it was looked at, as a balancer's health check does.
        """
        self._metrics.refused(reason)
        if address and self._refusals.may(now):
            log.info("connection.refused", reason=reason, address=address, **self._refusals.facts())

    def counted(self, address: str, n: int, limit: int) -> None:
        """There are `n` connections of this address now, the one that asks for room included."""
        if (n < CROWD and n <= limit) or self._crowd_told or self._names_proxies or not addresses.is_private(address):
            return
        self._crowd_told = True
        log.warning(
            "proxy.unnamed",
            address=address,
            connections=n,
            setting="trusted_proxies",
            msg="many connections from one private address: is it a proxy? Name it in trusted_proxies, or all its clients share one limit by address",
        )

    def headers_differ(self, address: str) -> None:
        """X-Forwarded-For and Forwarded name different clients: the address is that of the proxy."""
        if not self._differ_told:
            self._differ_told = True
            log.warning(
                "proxy.headers_differ",
                address=address,
                setting="forwarded_header",
                msg="a request had X-Forwarded-For and Forwarded, and they differ: name in forwarded_header the one that your proxy writes",
            )
