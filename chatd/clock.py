"""The two clocks of a node: a monotonic one for durations, and a wall clock for all other times.

    now()        seconds, monotonic: timeouts, rates, grace times; no step of a wall clock moves it
    now_ms()     ms since 1970: expiry of tokens, last-seen, `pong`; the monotonic clock + an offset
    steady_ms()  the same without its steps: which session is newer (core/steady_time.py)

The offset comes from PostgreSQL's clock (`sync`), so that all nodes of a database share one clock
and the host's own does not matter. Until PostgreSQL was read once, it comes from the host's clock
(`watch`). Either source may be stepped: set by an operator or by NTP, moved by a failover, or
resumed after a suspend. A reading is a step if it differs by more than `STEP_MS` plus the
uncertainty of this reading and of the one in use: the offset then follows at once, also backwards.
Smaller differences are noise or slow drift: the offset follows by a part of them, and `now_ms`
stands still rather than go back.

Versions must rise even if `now_ms` goes back. They are made from `now_ms() + ahead_ms`, a clock
that never goes back.

Rejected: `time.time()` wherever a wall time is needed. A host that started with a clock a month off
and was set right later closed good sessions with 4002 or kept ended ones, because half of the code
had read the clock before and half after. Pure: both clocks are arguments.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

STEP_MS: Final = 1_000  # a larger difference is neither noise nor drift
RTT_S_MAX: Final = 0.05  # a slower reading is too inexact for small corrections, unless none is better
# Each reading that is ignored raises the accepted round trip time: the database may be farther away
# than before.
RTT_FORGETS: Final = 1.1


def _ignored(step_ms: int) -> None:
    """The default of `Clock.stepped`."""


class Clock:
    """`now`: the monotonic source, in seconds; `host_s`: the host's wall clock, in seconds.

    `stepped(ms)`, if set, is called after each step.
    """

    __slots__ = (
        "_host_offset_ms",
        "_host_s",
        "_last_ms",
        "_offset_ms",
        "_rtt_s",
        "_stepped",
        "ahead_ms",
        "moved_ms",
        "now",
        "stepped",
        "synced",
    )

    def __init__(self, now: Callable[[], float], host_s: Callable[[], float]) -> None:
        self.now = now
        self._host_s = host_s
        self._offset_ms = self._host_offset_ms = host_s() * 1000 - now() * 1000
        self._last_ms = 0
        self._rtt_s = math.inf  # round trip time of the fastest reading of PostgreSQL's clock
        self.synced = False
        self.ahead_ms = 0  # how far versions run ahead of `now_ms`, because that went back
        self.moved_ms = 0.0  # the sum of all steps
        self._stepped = False  # `_rtt_s` is of the reading that gave a step, or refined it since
        self.stepped: Callable[[int], None] = _ignored

    def now_ms(self) -> int:
        """The wall time in ms since 1970. It goes back only by a step."""
        self._last_ms = max(self._last_ms, int(self._offset_ms + self.now() * 1000))
        return self._last_ms

    def now_s(self) -> float:
        """The same in seconds, for the expiry of tokens."""
        return self.now_ms() / 1000

    def steady_ms(self) -> int:
        """`now_ms` without its steps, in ms. It goes back only by small corrections."""
        return int(self._offset_ms - self.moved_ms + self.now() * 1000)

    def watch(self) -> int:
        """Compare the host's clock with the monotonic one; call it about once a second.

        Gives the step in ms, 0 if there was none. Once PostgreSQL was read, a step of the host's
        clock changes nothing here. But PostgreSQL may run on the same host: the caller reads its
        clock again.
        """
        offset_ms = self._host_s() * 1000 - self.now() * 1000
        moved_ms = offset_ms - self._host_offset_ms
        self._host_offset_ms = offset_ms
        step_ms = round(moved_ms) if abs(moved_ms) > STEP_MS else 0
        if not self.synced:
            if step_ms:
                self._step(moved_ms)
            else:
                self._offset_ms += moved_ms
        return step_ms

    def sync(self, db_ms: int, rtt_s: float) -> None:
        """Take over PostgreSQL's clock, read at some moment of the last `rtt_s` seconds."""
        error_ms = db_ms + rtt_s * 500 - self.now() * 1000 - self._offset_ms
        if not self.synced:  # no time has been given out yet
            self.synced = True
            self._offset_ms += error_ms
            self._last_ms = self.ahead_ms = 0
            self.moved_ms = 0.0
        elif abs(error_ms) > STEP_MS + (rtt_s + self._rtt_s) * 500:
            self._step(error_ms)
            self._rtt_s, self._stepped = rtt_s, True
        elif self._stepped and rtt_s < self._rtt_s:  # a better measurement of the step
            self._offset_ms += error_ms
            self.moved_ms += error_ms
        elif rtt_s > max(RTT_S_MAX, self._rtt_s):
            self._rtt_s *= RTT_FORGETS
            return
        else:
            # The reading in use may have been slow too: then a good one replaces it.
            self._offset_ms += error_ms if self._rtt_s > RTT_S_MAX else error_ms / 4
        self._rtt_s = min(self._rtt_s, rtt_s)

    def _step(self, by_ms: float) -> None:
        version_ms = self.now_ms() + self.ahead_ms
        self._offset_ms += by_ms
        self.moved_ms += by_ms
        self._last_ms = 0
        self.ahead_ms = max(0, version_ms - self.now_ms())
        self.stepped(round(by_ms))
