"""How much is too much: frames of a connection, entries of a user, and what ignoring an answer costs.

Pure.

    TokenBucket     per connection, every frame       on average so many a second, a burst after a pause
    SlidingWindow   per user, every entry             never more than N in any period: exact, tells how long to wait
    Penalty         per user, refused entries only    a wait that was not kept gets longer, and in the end closes
    Shared...       the last two over several nodes   what all nodes together allow, and this node's own count besides

`now` is an argument, in seconds, and never falls. Each object is a few words as long as nobody uses
it: a node holds one bucket per connection and two windows per user. Turned down: a token bucket for
entries (10 at once and then one each 0.5 s lets 19 into one period, which the promise "10 in any 5
s" forbids) and a counter per fixed period (20 around its edge).

Over several nodes Redis counts (`cluster/shared_limits.py`), by its own clock. A shared window
counts this node's takes as any window does, but takes only what was granted to it; so its "no"
needs no question, and when Redis is away it decides alone.
"""

from __future__ import annotations

import math
from array import array
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from chatd.ids import UserId

# A timer at the client may fire so much too early (browsers round) and still counts as in time
EARLY_SLACK_S: Final = 0.05
# What the first penalty doubles at least: the end of a wait is short, and coming in there is as
# rude
PENALTY_MIN_S: Final = 1.0
PENALTY_MAX_S: Final = 60.0  # longer waits only help people to think that it hangs; close code 4008 says the same 60 s

# Strikes are forgotten after so long without a new one, counted from the end of the last penalty:
# as long as the longest penalty, so that hammering all along is never "clean", and as long as a
# user without sessions is held, so that reconnecting gains nothing.
FORGET_S: Final = 60.0

# A long window that Redis said to be full is asked for again after so long, although the wait told
# is longer: a take may have been given back on another node. Short ones are not: their wait is over
# soon, and who hammers costs Redis nothing.
ASK_AGAIN_S: Final = 1.0
LONG_S: Final = 60.0

NO_GRANT_S: Final = 0.001  # room here, and nothing granted: the wait to tell, since a wait of 0 would mean "taken"


@lru_cache(maxsize=16)
def _pace(per_s: float, burst: int) -> tuple[float, float]:
    """(seconds a token takes, how far ahead of the clock a bucket may get).

    Cached so that all buckets share the two objects.

    Half a token of slack keeps `burst` takes at one instant from failing by rounding.
    """
    return 1 / per_s, (burst - 0.5) / per_s


class TokenBucket:
    """At most `burst` takes at once, and `per_s` a second on average.

    One number is its whole state: when the bucket will be full again. A take moves it on by one
    token's time.
    """

    __slots__ = ("_ahead_s", "_full_at", "_token_s")

    def __init__(self, per_s: float, burst: int) -> None:
        assert per_s > 0
        assert burst >= 1
        self._token_s, self._ahead_s = _pace(per_s, burst)
        self._full_at = 0.0

    def take(self, now: float) -> bool:
        """Take a token if there is one."""
        full_at = self._full_at
        if full_at < now:
            full_at = now
        elif full_at - now > self._ahead_s:
            return False
        self._full_at = full_at + self._token_s
        return True

    def owe(self, now: float, tokens: float) -> None:
        """What was taken costs so many tokens more, whether they are there or not: the next takes
        wait for them.
        """
        self._full_at = max(self._full_at, now) + tokens * self._token_s


class SlidingWindow:
    """Never more than `max_events` takes in any half-open time of `period_s`.

    It keeps the times of the last `max_events` takes: there is room if the oldest of them is a
    period away. Older ones cannot matter, nor can those that are a period away: takes let go of
    these, so that its size follows what is used of a high limit, not the limit.
    """

    __slots__ = ("_takes", "max_events", "period_s")

    def __init__(self, max_events: int, period_s: float) -> None:
        assert max_events >= 1
        assert period_s > 0
        self.max_events = max_events
        self.period_s = period_s
        self._takes: array[float] | None = None  # rising; most users send nothing most of the time

    def take(self, now: float) -> float:
        """0.0: taken, at `now`.

        Else nothing is taken, and it gives the seconds after which a take would succeed.
        """
        takes = self._takes
        if takes is None:
            self._takes = array("d", (now,))
            return 0.0
        free_at = takes[0] + self.period_s
        if free_at <= now:  # two at most: so it shrinks, and no take has to go through all of a long one
            del takes[: 2 if len(takes) > 1 and takes[1] + self.period_s <= now else 1]
        elif len(takes) >= self.max_events:
            return _until(free_at, now)
        takes.append(now)
        return 0.0

    def wait(self, now: float) -> float:
        """The seconds after which a take would succeed; 0.0 if it would now."""
        takes = self._takes
        if takes is None or len(takes) < self.max_events or now >= takes[0] + self.period_s:
            return 0.0
        return _until(takes[0] + self.period_s, now)

    def refused(self, now: float) -> float:
        """The wait, if no take is worth a try; else 0.0."""
        return self.wait(now)

    def give_back(self, taken_at: float) -> None:
        """Undo the take made at that time; nothing if there is none (any more)."""
        takes = self._takes
        if takes is not None and taken_at in takes:
            takes.remove(taken_at)
            if not takes:
                self._takes = None

    @property
    def empty_at(self) -> float:
        """When its last take has left it: from then on it is as good as new."""
        return self._takes[-1] + self.period_s if self._takes else 0.0


def _until(at: float, now: float) -> float:
    """What to add to `now` to get to `at`, and no rounding short of it."""
    wait = at - now
    return wait if now + wait >= at else wait + math.ulp(at)


class PenaltyVerdict(NamedTuple):
    """What a refusal costs: tell this wait, or close the connection."""

    close: bool
    wait_s: float


class Penalty:
    """What a user pays for sends that ignore `retry_ms`.

    Nothing is written for them before `until`.

    Being over the rate is no offence: an outbox of 50 sent at once, or two devices that do not know
    of each other, are told to wait and that is all. The offence is to send before the time that the
    client was told and has read (`early`; see core/session.py). Each doubles the wait, up to
    `PENALTY_MAX_S`; more than `strikes_max` of them end the connection.
    """

    __slots__ = ("_strikes", "_strikes_max", "_wait_s", "until")

    def __init__(self, strikes_max: int) -> None:
        self.until = 0.0
        self._strikes_max = strikes_max
        self._strikes = 0
        self._wait_s = 0.0  # the last penalty

    def refused(self, now: float, wait_s: float, early: bool) -> PenaltyVerdict:
        """An entry was refused as over the rate.

        `wait_s`: when there is room for it, and no sooner than `until`.

        Whoever waits what the verdict says gets through, unless another device of the user was
        quicker.
        """
        if not early:
            return PenaltyVerdict(False, wait_s)
        if now >= self.until + FORGET_S:
            self._strikes, self._wait_s = 0, 0.0
        self._strikes += 1
        self._wait_s = min(2 * max(self._wait_s, wait_s, PENALTY_MIN_S), PENALTY_MAX_S)
        wait_s = max(self._wait_s, wait_s)  # a long period of the window can ask for more than any penalty
        self.until = now + wait_s
        return PenaltyVerdict(self._strikes > self._strikes_max, wait_s)

    @property
    def forgotten_at(self) -> float:
        """From then on it is as good as new."""
        return self.until + FORGET_S if self._strikes else 0.0


class Shares(Protocol):
    """Who tells the other nodes (`core/admission.py`). Neither call waits or fails."""

    def returned(self, window: SharedWindow, mark: int) -> None:
        """A take that Redis granted at `mark` made nothing."""

    def struck(self, window: SharedWindow, wait_s: float) -> None:
        """Its user did not wait, and must do so for `wait_s` now."""


class SharedWindow(SlidingWindow):
    """The node's part of a window that all nodes share.

    `grant` says how many takes may succeed now, `settle` takes back those that were not used. Each
    take remembers the mark of its grant (Redis's time), by which it can be given back there; 0
    marks a take that this node decided alone.
    """

    __slots__ = ("_asked_at", "_grants", "_mark", "_marks", "_told_until", "kind", "penalty", "shares", "user")

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
        self._marks: array[int] | None = None  # beside `_takes`
        self._mark = 0
        self._grants = 0
        self._told_until = 0.0  # there was no room at Redis, and none is expected before
        self._asked_at = 0.0  # when that was heard; see ASK_AGAIN_S

    def room(self, now: float) -> int:
        """How many takes it is worth to ask for."""
        if now < self._told_until and (self.period_s <= LONG_S or now < self._asked_at + ASK_AGAIN_S):
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

    def grant(self, takes: int, mark: int, told_until: float) -> None:
        """So many takes may succeed until `settle`.

        `told_until`: when there is room again, if it were too few; else 0.
        """
        self._grants, self._mark, self._told_until = takes, mark, told_until

    def settle(self) -> int:
        """No more takes; gives the number of grants that were not used."""
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
            del marks[: len(marks) - len(self._takes)]  # of those that the window let go of
        return wait

    def wait(self, now: float) -> float:
        return max(super().wait(now), self._told_until - now)

    def refused(self, now: float) -> float:
        return 0.0 if self.room(now) else max(self.wait(now), NO_GRANT_S)

    def give_back(self, taken_at: float) -> None:
        takes, marks = self._takes, self._marks
        if takes is None or marks is None or taken_at not in takes:
            return
        # Of several with one time the first has the lowest mark: to forget the oldest is on the
        # safe side.
        mark = marks.pop(takes.index(taken_at))
        super().give_back(taken_at)
        if mark:
            self._told_until = 0.0
            self.shares.returned(self, mark)


class SharedPenalty(Penalty):
    """A penalty that all nodes share. `window`: the one that it belongs to; that sets it."""

    __slots__ = ("window",)

    window: SharedWindow

    def refused(self, now: float, wait_s: float, early: bool) -> PenaltyVerdict:
        verdict = super().refused(now, wait_s, early)
        if early:
            self.window.shares.struck(self.window, verdict.wait_s)
        return verdict

    def learn(self, now: float, until: float, strikes: int, wait_s: float) -> None:
        """What all nodes together hold against the user; of two opinions the worse one."""
        if now >= self.until + FORGET_S:
            self._strikes, self._wait_s = 0, 0.0
        self.until = max(self.until, until)
        self._strikes = max(self._strikes, strikes)
        self._wait_s = max(self._wait_s, wait_s)
