"""Decides when to connect again (section 10 of docs/protocol.md). Pure.

The caller reports what happened (`closed`, `refused`, `unreachable`, `live`, `settled`) and gets a
`Next`: how long to wait, or that the client has ended. `renew` says whether the next token must be
a new one.

Delays: full jitter below 0.25 s where the page says "at once", then below 0.5 s, 1 s, 2 s ... 30 s.
Even the first try has its jitter, because the clients of a node that dies are all cut off at one
instant. A time that the server named is kept to as it is the first time (it spreads its clients
itself), and has the jitter on top from then on. A welcome alone does not set the delays back,
because a server may close right after it, each time; a connection that has lived for `SETTLED_S`
does.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, TypeAlias

from chatd.errors import CloseCode

AT_ONCE_S: Final = 0.25  # what "at once" means, for jitter
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
RATE_LIMITED_S: Final = 60.0
REFUSALS_MAX: Final = 10  # of tokens in a row, after a first welcome: some 45 s on average, for a key to spread
DOUBLINGS_MAX: Final = 6  # 0.5 s * 2^6 is over 30 s
SETTLED_S: Final = 10.0  # the life of a connection, from its welcome on, after which the next loss is a first one

# What follows a close: at once and then with back-off; with back-off from the first try; after
# RATE_LIMITED_S; with another token; not at all.
Rule: TypeAlias = Literal["at_once", "backoff", "wait", "token", "stop"]

CLOSES: Final[Mapping[int, tuple[Rule, str]]] = MappingProxyType({
    CloseCode.NORMAL: ("backoff", "closed"),
    CloseCode.GOING_AWAY: ("backoff", "closed"),
    CloseCode.PROTOCOL_ERROR: ("stop", "protocol"),
    CloseCode.UNSUPPORTED: ("stop", "protocol"),
    CloseCode.BAD_UTF8: ("stop", "protocol"),
    CloseCode.TOO_BIG: ("stop", "protocol"),
    CloseCode.INTERNAL: ("backoff", "internal"),
    CloseCode.RESTART: ("at_once", "restart"),
    CloseCode.BAD_FRAMES: ("stop", "protocol"),
    CloseCode.UNAUTHORIZED: ("token", "unauthorized"),
    CloseCode.TOKEN_EXPIRED: ("token", "token_expired"),
    CloseCode.HELLO_TIMEOUT: ("backoff", "hello_timeout"),
    CloseCode.REPLACED: ("stop", "replaced"),
    CloseCode.TOO_MANY_DEVICES: ("stop", "too_many_devices"),
    CloseCode.SLOW_CONSUMER: ("at_once", "slow_consumer"),
    CloseCode.HEARTBEAT: ("at_once", "heartbeat"),
    CloseCode.RATE_LIMITED: ("wait", "rate_limited"),
    CloseCode.OVERLOADED: ("backoff", "overloaded"),
})  # fmt: skip
TOKEN_CODES: Final = MappingProxyType({
    "unauthorized": CloseCode.UNAUTHORIZED, "token_expired": CloseCode.TOKEN_EXPIRED,
})  # fmt: skip
LOST: Final[tuple[Rule, str]] = ("at_once", "lost")  # any other code, and none at all


class Next(NamedTuple):
    """`wait_s` None: do not connect again, because of `reason`. `close_code`: if one was sent."""

    wait_s: float | None
    reason: str
    close_code: int | None = None


class Dial:
    """The policy of one client. `renewable`: a refused token can be replaced by another."""

    def __init__(self, rng: random.Random, *, renewable: bool) -> None:
        self._rng = rng
        self._renewable = renewable
        self._tries = 0
        self._refusals = 0
        self._been_live = False
        self.renew = False  # whether the next token must be a new one

    def live(self) -> None:
        """A welcome is complete. After `SETTLED_S` of that connection, call `settled`."""
        self._refusals = 0
        self._been_live, self.renew = True, False

    def settled(self) -> None:
        """A connection has lived for long enough."""
        self._tries = 0

    def closed(self, code: int, *, named_s: float | None = None) -> Next:
        """A connection ended with a close code; `named_s`: how long the server said to wait
        (`notice`).
        """
        rule, reason = CLOSES.get(code, LOST)
        match rule:
            case "stop":
                return Next(None, reason, code)
            case "token":
                return self._other_token(reason, code)
            case "wait":
                return Next(RATE_LIMITED_S, reason)
            case "at_once" | "backoff":
                return Next(
                    self._backoff(at_once=rule == "at_once") if named_s is None else self._named(named_s), reason
                )

    def left(self, reason: str) -> Next:
        """This client ended the connection, because something was wrong with it."""
        return Next(self._backoff(at_once=reason == "silent"), reason)

    def refused(self, code: str, retry_ms: int | None) -> Next:
        """`hello` was answered by an `err`."""
        if code in TOKEN_CODES:
            return self._other_token(code, TOKEN_CODES[code])
        return Next(None if retry_ms is None else self._named(retry_ms / 1000), code)

    def unreachable(self, http_status: int | None = None) -> Next:
        """The connection could not be made.

        A status below 500 before any welcome says that the URL or the origin is wrong; later it may
        be a load balancer's.
        """
        if http_status is not None and http_status < 500 and http_status not in (408, 425, 429):
            return self.not_chatd(f"http_{http_status}")
        return Next(self._backoff(at_once=False), "unreachable")

    def not_chatd(self, reason: str) -> Next:
        """What answers at the URL is no chatd, or not by this scheme: the end before any welcome.

        Later it is something that stands in for chatd for a while.
        """
        return Next(self._backoff(at_once=False) if self._been_live else None, reason)

    def no_token(self) -> Next:
        """The token could not be had just now."""
        return Next(self._backoff(at_once=False), "token")

    def _other_token(self, reason: str, code: int) -> Next:
        self._refusals += 1
        self.renew = True
        # A client that was let in before meets a key that not every node knows yet
        if not self._renewable or self._refusals > (REFUSALS_MAX if self._been_live else 1):
            return Next(None, reason, code)
        return Next(self._backoff(at_once=True), reason, code)

    def _named(self, wait_s: float) -> float:
        if self._tries == 0 and wait_s > 0.0:
            self._tries = 1
            return wait_s
        return wait_s + self._backoff(at_once=True)

    def _backoff(self, *, at_once: bool) -> float:
        if self._tries == 0 and at_once:
            self._tries = 1
            return self._rng.random() * AT_ONCE_S
        ceiling = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(max(self._tries - 1, 0), DOUBLINGS_MAX))
        self._tries = max(self._tries, 1) + 1
        return self._rng.random() * ceiling
