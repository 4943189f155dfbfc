"""The two clocks of a node: a monotonic one for durations, and one wall clock for everything that
is judged or shown.

    now()        seconds, monotonic: timeouts, rates, grace times. No step of any wall clock reaches it.
    now_ms()     ms since 1970: whether a token has ended, last-seen, `pong`. The monotonic clock plus an offset.
    steady_ms()  the same without its steps: which of two sessions is the newer (core/steady_time.py).

The offset is taken from PostgreSQL's clock (`sync`), so that all nodes of a database have one clock
and the host's own does not matter. Until PostgreSQL was read once, it is taken from the host's
(`watch`). Either source may be stepped: set by an operator or by NTP, moved by a failover, or
resumed after a suspend. A reading that differs by more than `STEP_MS` and the uncertainty of both,
its own and that of what we go by, is a step: the offset follows at once, back too. Smaller
differences are noise or slow drift: the offset follows by a part of them, and `now_ms` waits rather
than goes back.

Versions must rise although `now_ms` may go back: they are made from `now_ms() + ahead_ms`, a clock
that never goes back and runs on.

Turned down: `time.time()` wherever a wall time is needed. A host that started with a clock a month
off, set right later, closed good sessions with 4002 or kept ended ones, because one half of the
code had read it before and the other after. Pure: both clocks are arguments.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

STEP_MS: Final = 1_000  # a difference beyond noise and drift
RTT_S_MAX: Final = 0.05  # a slower reading says too little for small corrections, unless there is nothing better
# A reading passed over makes the next one count sooner: the database may have moved farther away
RTT_FORGETS: Final = 1.1


def _ignored(step_ms: int) -> None:
    """The default of `Clock.stepped`."""


class Clock:
    """`now`: the monotonic source; `host_s`: the host's wall clock.

    `stepped(ms)`, if set, hears of each step after it is made.
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
        self._rtt_s = math.inf  # of the quickest reading of PostgreSQL's clock
        self.synced = False
        self.ahead_ms = 0  # how far versions run ahead of `now_ms`, since that went back
        self.moved_ms = 0.0  # the sum of all steps
        self._stepped = False  # `_rtt_s` is that of a step, or of a reading that said better how far it went
        self.stepped: Callable[[int], None] = _ignored

    def now_ms(self) -> int:
        """Now, in ms since 1970. It goes back only by a step."""
        self._last_ms = max(self._last_ms, int(self._offset_ms + self.now() * 1000))
        return self._last_ms

    def now_s(self) -> float:
        """The same in seconds: what tokens are judged by."""
        return self.now_ms() / 1000

    def steady_ms(self) -> int:
        """`now_ms` as it would be had no source ever been stepped.

        It goes back only by small corrections.
        """
        return int(self._offset_ms - self.moved_ms + self.now() * 1000)

    def watch(self) -> int:
        """Compare the host's clock with the monotonic one; call it about once a second.

        Gives the step in ms, 0 if there was none.

        Once PostgreSQL was read, a step of the host's clock changes nothing here, but PostgreSQL
        may run on the same host: read it again.
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
        """PostgreSQL's clock, read within the last `rtt_s`: it may have been read at any moment of
        that time.
        """
        error_ms = db_ms + rtt_s * 500 - self.now() * 1000 - self._offset_ms
        if not self.synced:  # nobody has been told a time yet
            self.synced = True
            self._offset_ms += error_ms
            self._last_ms = self.ahead_ms = 0
            self.moved_ms = 0.0
        elif abs(error_ms) > STEP_MS + (rtt_s + self._rtt_s) * 500:
            self._step(error_ms)
            self._rtt_s, self._stepped = rtt_s, True
        elif self._stepped and rtt_s < self._rtt_s:  # it says better how far the step went
            self._offset_ms += error_ms
            self.moved_ms += error_ms
        elif rtt_s > max(RTT_S_MAX, self._rtt_s):
            self._rtt_s *= RTT_FORGETS
            return
        else:
            # What we go by may have been read slowly, too: then a good reading replaces it.
            self._offset_ms += error_ms if self._rtt_s > RTT_S_MAX else error_ms / 4
        self._rtt_s = min(self._rtt_s, rtt_s)

    def _step(self, by_ms: float) -> None:
        version_ms = self.now_ms() + self.ahead_ms
        self._offset_ms += by_ms
        self.moved_ms += by_ms
        self._last_ms = 0
        self.ahead_ms = max(0, version_ms - self.now_ms())
        self.stepped(round(by_ms))
