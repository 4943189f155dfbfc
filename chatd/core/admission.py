"""The queue of entries that wait for the rate limits that all nodes share. Pure.

    put(window, now, then) ─► queue ─gather─► Call ─(Redis)─► decide ─► then(now), in order of `put`
                                                └─ no answer ─► alone ─► the same, by the own count
    an unused take, a strike ─► asks, sent with the next call

Calls are batched as a lane batches entries: one call is under way, and what arrives during it forms
the next call, in order of arrival. So calls grow with the load, and no timer is needed. An item of
the queue is a function, not an entry of a log: the first message to a new peer asks for a new
conversation in the same way.

Redis is never asked for what this node's own count forbids, nor for more than it allows, so a user
who keeps sending over the limit costs Redis nothing. The windows decide who may proceed: `decide`
gives each window its grants, runs the functions that waited, and takes back the grants that they
did not use (their entries were blocked).

While Redis is away (`away`) and the queue is empty, `put` runs its function at once. Neighbours:
`core/rate_limit.py` (`SharedWindow`), `cluster/shared_limits.py` (the calls).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from chatd.core.rate_limit import SharedWindow

CALL_MAX: Final = 256  # items in one call, and windows in one call: 1 to 2 ms of Redis

# Windows with something to report. Past this bound nothing more is remembered: a take that is not
# given back leaves its window by itself, within the window's period.
REPORTS_MAX: Final = 10_000

Then: TypeAlias = Callable[[float], None]


class Waiting(NamedTuple):
    """`then(put_at)` runs once the window has its grants. It must not raise.

    `put_at`: when it was put into the queue, in seconds.
    """

    window: SharedWindow
    put_at: float
    then: Then


class Ask:
    """What one window asks and reports in a call."""

    __slots__ = ("returned", "room", "struck", "want", "window")

    def __init__(self, window: SharedWindow) -> None:
        self.window = window
        self.room = 0  # takes that the node's own count allows
        self.want = 0  # takes to ask for: one for each item of this window in the call, `room` at most
        self.returned: list[int] = []  # marks of takes that were not used
        self.struck: list[float] = []  # per strike: seconds that the user must wait

    def __bool__(self) -> bool:
        """True if there is anything to ask or to report."""
        return bool(self.want or self.returned or self.struck)


class Call(NamedTuple):
    """`asks` go to Redis, if there are any; `waiting` run after the answer."""

    waiting: list[Waiting]
    asks: list[Ask]


class Grant(NamedTuple):
    """The answer to one `Ask`. Times are in seconds from now. `strikes` 0: no penalty is known."""

    granted: int
    wait_s: float  # until one more take would succeed, if fewer were granted than asked for
    until_s: float  # until the penalty ends; negative: it has ended, and is still remembered
    strikes: int
    last_wait_s: float


class AdmissionQueue:
    """Implements `rate_limit.Shares`. Calls `wake` when there is something for the next call."""

    def __init__(self, queue_max: int, wake: Callable[[], None]) -> None:
        self.away = False
        self.alone_n = 0  # items decided by this node alone, since the start
        self._queue_max, self._wake = queue_max, wake
        self._queue: deque[Waiting] = deque()
        self._reports: dict[SharedWindow, Ask] = {}
        self._under_way = 0

    def __len__(self) -> int:
        """How many items wait, those of the call under way included."""
        return len(self._queue) + self._under_way

    @property
    def idle(self) -> bool:
        """True if the next call would have nothing to do."""
        return not self._queue and not self._reports

    # ---- input -----------------------------------------------------------------------------------

    def put(self, window: SharedWindow, now: float, then: Then) -> bool:
        """Run `then` once the window has its grants. False: the queue is full and it never runs."""
        if self.away and not len(self):
            self._run_alone((Waiting(window, now, then),))
            return True
        if len(self._queue) >= self._queue_max:
            return False
        if not self._queue:
            self._wake()
        self._queue.append(Waiting(window, now, then))
        return True

    def returned(self, window: SharedWindow, mark: int) -> None:
        """Report, with the next call, that a take of this mark was not used."""
        if (ask := self._report(window)) is not None:
            ask.returned.append(mark)

    def struck(self, window: SharedWindow, wait_s: float) -> None:
        """Report, with the next call, that the user of the window must wait for `wait_s`."""
        if (ask := self._report(window)) is not None:
            ask.struck.append(wait_s)

    def _report(self, window: SharedWindow) -> Ask | None:
        ask = self._reports.get(window)
        if ask is None:
            if self.away or len(self._reports) >= REPORTS_MAX:
                return None
            ask = self._reports[window] = Ask(window)
            self._wake()
        return ask

    # ---- the calls -------------------------------------------------------------------------------

    def gather(self) -> Call:
        """The next call. Give it to `decide` or `alone` before the next one is gathered."""
        assert not self._under_way
        queue, reports = self._queue, self._reports
        waiting = [queue.popleft() for _ in range(min(len(queue), CALL_MAX))]
        asks: dict[SharedWindow, Ask] = {}
        for window, put_at, _ in waiting:
            ask = asks.get(window)
            if ask is None:
                ask = asks[window] = reports.pop(window) if window in reports else Ask(window)
                ask.room = window.room(put_at)
            if ask.want < ask.room:
                ask.want += 1
        for window in list(islice(reports, max(0, CALL_MAX - len(asks)))):
            asks[window] = reports.pop(window)
        self._under_way = len(waiting)
        return Call(waiting, [ask for ask in asks.values() if ask])

    def decide(self, call: Call, mark: int, grants: Sequence[Grant], now: float) -> None:
        """Run the items of a call that Redis answered, at `mark` by Redis's clock."""
        for ask, grant in zip(call.asks, grants, strict=True):
            window = ask.window
            if ask.want:
                window.grant(grant.granted, mark, now + grant.wait_s if grant.granted < ask.want else 0.0)
            if grant.strikes and window.penalty is not None:
                window.penalty.learn(now, now + grant.until_s, grant.strikes, grant.last_wait_s)
        self._run(call.waiting)
        for ask in call.asks:
            for _ in range(ask.window.settle()):
                self.returned(ask.window, mark)

    def alone(self, call: Call) -> None:
        """Redis did not answer: decide the call, and the queue behind it, by this node's own count.

        Pending reports are dropped.
        """
        self.away = True
        self._reports.clear()
        self._run_alone(call.waiting)
        while self._queue:
            self._run_alone((self._queue.popleft(),))

    def back(self) -> None:
        """Ask Redis again from now on: it answers."""
        self.away = False

    def _run(self, waiting: Sequence[Waiting]) -> None:
        for _, put_at, then in waiting:
            then(put_at)
        self._under_way = 0

    def _run_alone(self, waiting: Sequence[Waiting]) -> None:
        self.alone_n += len(waiting)
        for window, put_at, then in waiting:
            window.grant(1, 0, 0.0)
            then(put_at)
            window.settle()
        self._under_way = 0
