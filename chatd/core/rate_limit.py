"""The rate limits: frames of a connection, entries of a user, penalties for ignored waits. Pure.

    TokenBucket    per connection, every frame     a rate on average, a burst after a pause
    SlidingWindow  per user, every entry           never more than N in any period; the exact wait
    Penalty        per user, refused entries only  an ignored wait doubles, and in the end closes
    Shared...      the last two over nodes         what all nodes together allow

`now` is an argument, in seconds, and never falls. An unused object is a few words long: a node
holds one bucket per connection and two windows per user. Rejected: a token bucket for entries (10
at once and then one each 0.5 s lets 19 into one period, which the promise "10 in any 5 s" forbids)
and a counter per fixed period (20 around its edge).

The numbers are the settings `rate_messages` and `rate_per_ms` of config.py. An entry takes its
place in a window in core/send_order.py.

With several nodes Redis counts (`cluster/shared_limits.py`), by its own clock. A shared window
counts this node's takes as any window does, but takes only what Redis granted to it. So it can
refuse without asking Redis, and while Redis is away it decides alone.
"""

from __future__ import annotations

import math
from array import array
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from chatd.ids import UserId

# A client's timer that fires early by this much still counts as in time: browsers round.
EARLY_SLACK_S: Final = 0.05
# The first penalty doubles at least this: near the end of a wait the rest is short, and an entry
# sent then is as early as any other.
PENALTY_MIN_S: Final = 1.0
PENALTY_MAX_S: Final = 60.0  # after longer waits users think that it hangs; close code 4008 has the same 60 s

# Strikes are forgotten this long after the end of the last penalty. It is as long as the longest
# penalty, so that a client that never stops is never forgiven, and as long as a user without
# sessions is held, so that reconnecting gains nothing.
FORGET_S: Final = 60.0

# If Redis says that a long window is full, it is asked again after this time, although the wait is
# longer: another node may have given back a take. Short windows are not asked for again: their wait
# ends soon, and a client that keeps sending costs Redis nothing.
ASK_AGAIN_S: Final = 1.0
LONG_S: Final = 60.0

# The wait if there is room here but Redis granted nothing: a wait of 0 would mean "taken".
NO_GRANT_S: Final = 0.001


@lru_cache(maxsize=16)
def _pace(per_s: float, burst: int) -> tuple[float, float]:
    """(seconds per token, how far a bucket may get ahead of the clock, in seconds).

    Cached so that all buckets share the two objects. Half a token of slack keeps `burst` takes at
    one instant from failing by rounding.
    """
    return 1 / per_s, (burst - 0.5) / per_s


class TokenBucket:
    """At most `burst` takes at once, and `per_s` a second on average.

    Its whole state is one number, the time when the bucket is full again. A take moves that time
    forward by one token's time.
    """

    __slots__ = ("_ahead_s", "_full_at", "_token_s")

    def __init__(self, per_s: float, burst: int) -> None:
        assert per_s > 0
        assert burst >= 1
        self._token_s, self._ahead_s = _pace(per_s, burst)
        self._full_at = 0.0

    def take(self, now: float) -> bool:
        """Take a token; False if there is none."""
        full_at = self._full_at
        if full_at < now:
            full_at = now
        elif full_at - now > self._ahead_s:
            return False
        self._full_at = full_at + self._token_s
        return True

    def owe(self, now: float, tokens: float) -> None:
        """Take so many tokens more, even if they are not there: the next takes wait for them."""
        self._full_at = max(self._full_at, now) + tokens * self._token_s


class SlidingWindow:
    """Never more than `max_events` takes in any half-open interval of `period_s`.

    It keeps the times of the last `max_events` takes: there is room if the oldest of them is a
    period old. Takes that are a period old cannot matter and are dropped, so the size follows what
    is used of a high limit and not the limit.
    """

    __slots__ = ("_takes", "max_events", "period_s")

    def __init__(self, max_events: int, period_s: float) -> None:
        assert max_events >= 1
        assert period_s > 0
        self.max_events = max_events
        self.period_s = period_s
        self._takes: array[float] | None = None  # in order of time; None since most users send nothing

    def take(self, now: float) -> float:
        """0.0: a take was made at `now`. Else none was: the seconds until one would succeed."""
        takes = self._takes
        if takes is None:
            self._takes = array("d", (now,))
            return 0.0
        free_at = takes[0] + self.period_s
        if free_at <= now:  # drops two at most: the array shrinks, and no take scans a long one
            del takes[: 2 if len(takes) > 1 and takes[1] + self.period_s <= now else 1]
        elif len(takes) >= self.max_events:
            return _until(free_at, now)
        takes.append(now)
        return 0.0

    def wait(self, now: float) -> float:
        """The seconds until a take would succeed; 0.0 if it would now."""
        takes = self._takes
        if takes is None or len(takes) < self.max_events or now >= takes[0] + self.period_s:
            return 0.0
        return _until(takes[0] + self.period_s, now)

    def refused(self, now: float) -> float:
        """The wait in seconds if a take cannot succeed now; else 0.0."""
        return self.wait(now)

    def give_back(self, taken_at: float) -> None:
        """Undo the take made at that time; nothing if it is not (or no longer) there."""
        takes = self._takes
        if takes is not None and taken_at in takes:
            takes.remove(taken_at)
            if not takes:
                self._takes = None

    @property
    def empty_at(self) -> float:
        """When its last take leaves it, in seconds: from then on it equals a new window."""
        return self._takes[-1] + self.period_s if self._takes else 0.0


def _until(at: float, now: float) -> float:
    """The wait from `now` to `at`, rounded so that `now + wait >= at`."""
    wait = at - now
    return wait if now + wait >= at else wait + math.ulp(at)


class PenaltyVerdict(NamedTuple):
    """What a refusal costs: a wait of `wait_s` to answer with, or the end of the connection."""

    close: bool
    wait_s: float


class Penalty:
    """The penalty of a user who ignores `retry_ms`: nothing of theirs is written before `until`.

    Being over the rate is no offence: an outbox of 50 sent at once, or two devices that do not know
    of each other, only get a wait. The offence is to send before the end of a wait that the client
    has read (`early`, see core/send_order.py). Each offence is a strike and doubles the wait, up to
    `PENALTY_MAX_S`. More than `strikes_max` strikes close the connection.
    """

    __slots__ = ("_strikes", "_strikes_max", "_wait_s", "until")

    def __init__(self, strikes_max: int) -> None:
        self.until = 0.0
        self._strikes_max = strikes_max
        self._strikes = 0
        self._wait_s = 0.0  # of the last penalty

    def refused(self, now: float, wait_s: float, early: bool) -> PenaltyVerdict:
        """What the refusal of an entry over the rate costs.

        `wait_s`: the seconds until there is room for it, and `until` is over. An entry sent after
        the wait of the verdict is accepted, unless another device of the user took the room first.
        """
        if not early:
            return PenaltyVerdict(False, wait_s)
        if now >= self.until + FORGET_S:
            self._strikes, self._wait_s = 0, 0.0
        self._strikes += 1
        self._wait_s = min(2 * max(self._wait_s, wait_s, PENALTY_MIN_S), PENALTY_MAX_S)
        wait_s = max(self._wait_s, wait_s)  # the wait of a long window can exceed any penalty
        self.until = now + wait_s
        return PenaltyVerdict(self._strikes > self._strikes_max, wait_s)

    @property
    def forgotten_at(self) -> float:
        """When the strikes are forgotten, in seconds: from then on it equals a new penalty."""
        return self.until + FORGET_S if self._strikes else 0.0


class Shares(Protocol):
    """Reports to the other nodes (`core/admission.py`). Neither call waits or fails."""

    def returned(self, window: SharedWindow, mark: int) -> None:
        """A take that Redis granted at `mark` was not used."""

    def struck(self, window: SharedWindow, wait_s: float) -> None:
        """Its user did not wait, and must now wait for `wait_s`."""


class SharedWindow(SlidingWindow):
    """The node's part of a window that all nodes share.

    `grant` says how many takes may succeed now; `settle` takes back those that were not used. Each
    take keeps the mark of its grant (Redis's time, microseconds), by which it can be given back
    there. The mark 0 is that of a take that this node decided alone.
    """

    __slots__ = ("_asked_at", "_full_until", "_grants", "_mark", "_marks", "kind", "penalty", "shares", "user")

    def __init__(
        self,
        max_events: int,
        period_s: float,
        kind: int,
        user: UserId,
        shares: Shares,
        penalty: SharedPenalty | None = None,
    ) -> None:
        super().__init__(max_events, period_s)
        self.kind, self.user, self.shares, self.penalty = kind, user, shares, penalty
        if penalty is not None:
            penalty.window = self
        self._marks: array[int] | None = None  # one for each of `_takes`
        self._mark = 0
        self._grants = 0
        self._full_until = 0.0  # Redis had no room, and expects none before
        self._asked_at = 0.0  # when Redis said so; see ASK_AGAIN_S

    def room(self, now: float) -> int:
        """How many takes are worth asking Redis for."""
        if now < self._full_until and (self.period_s <= LONG_S or now < self._asked_at + ASK_AGAIN_S):
            return 0
        if self.penalty is not None and now < self.penalty.until:
            return 0
        takes = self._takes
        if takes is None:
            return self.max_events
        free = self.max_events - len(takes)
        for at in takes:
            if now < at + self.period_s:
                break
            free += 1
        return free

    def grant(self, takes: int, mark: int, full_until: float) -> None:
        """Let so many takes succeed until `settle`.

        `full_until`: when there is room again, in seconds, if fewer were granted than asked for;
        else 0.
        """
        self._grants, self._mark, self._full_until = takes, mark, full_until

    def settle(self) -> int:
        """End the grants; gives the number of those that were not used."""
        left, self._grants = self._grants, 0
        return left

    def take(self, now: float) -> float:
        if not self._grants:
            if now >= self._asked_at + ASK_AGAIN_S:
                self._asked_at = now
            return max(self.wait(now), NO_GRANT_S)
        wait = super().take(now)
        if wait == 0.0:
            self._grants -= 1
            marks = self._marks = self._marks or array("q")
            marks.append(self._mark)
            assert self._takes is not None
            del marks[: len(marks) - len(self._takes)]  # the marks of takes that the window dropped
        return wait

    def wait(self, now: float) -> float:
        return max(super().wait(now), self._full_until - now)

    def refused(self, now: float) -> float:
        return 0.0 if self.room(now) else max(self.wait(now), NO_GRANT_S)

    def give_back(self, taken_at: float) -> None:
        takes, marks = self._takes, self._marks
        if takes is None or marks is None or taken_at not in takes:
            return
        # Of several takes at one time the first has the lowest mark. Giving back the oldest errs on
        # the safe side.
        mark = marks.pop(takes.index(taken_at))
        super().give_back(taken_at)
        if mark:
            self._full_until = 0.0
            self.shares.returned(self, mark)


class SharedPenalty(Penalty):
    """A penalty that all nodes share. `window`: the one it belongs to, set by that."""

    __slots__ = ("window",)

    window: SharedWindow

    def refused(self, now: float, wait_s: float, early: bool) -> PenaltyVerdict:
        verdict = super().refused(now, wait_s, early)
        if early:
            self.window.shares.struck(self.window, verdict.wait_s)
        return verdict

    def learn(self, now: float, until: float, strikes: int, wait_s: float) -> None:
        """Take over what Redis holds against the user; the larger of the two values counts."""
        if now >= self.until + FORGET_S:
            self._strikes, self._wait_s = 0, 0.0
        self.until = max(self.until, until)
        self._strikes = max(self._strikes, strikes)
        self._wait_s = max(self._wait_s, wait_s)
