"""The gate before the lanes where several nodes share their users' limits: what waits there, what
is asked for it, and who goes through. Pure.

    put(window, now, then) ──► queue ──gather──► Call ──(Redis)──► decide ──► then(now), in the order of `put`
                                                   └── no answer ──► alone ──► the same, by this node's own count
    a take that made nothing, a strike ──► asks, told by the next call

Like a lane's batch: one call is under way, what comes in meanwhile is the next one, in the order it
came; so calls grow with the load, and no timer is needed. What waits is a function, not an entry of
a log: the first message to somebody asks for a new conversation in the same way.

Nothing is asked for what this node's own count forbids, and never more than it allows; so a user
who hammers costs Redis nothing. Who goes through is seen by the windows: `decide` gives each its
grants before it runs what waits, and takes back those that were not used (what waited was blocked).

While Redis is away (`away`) and nothing waits, `put` runs what it is given at once. Neighbours:
`limits.SharedWindow`, `cluster/shared_limits.py` (the calls).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from chatd.core.rate_limit import SharedWindow

CALL_MAX: Final = 256  # of what waits in a call, and as many windows: 1 to 2 ms of Redis

# Windows with something to tell. Past it nothing more is remembered: a take that is not given back
# leaves its window by itself, within its period.
TELL_MAX: Final = 10_000

Then: TypeAlias = Callable[[float], None]


class Waiting(NamedTuple):
    """`then(came)` is run when the window has its grants; it must not raise.

    `came`: when it was put, in seconds.
    """

    window: SharedWindow
    came: float
    then: Then


class Ask:
    """What one window asks and tells in a call."""

    __slots__ = ("returned", "room", "struck", "waiting", "window")

    def __init__(self, window: SharedWindow) -> None:
        self.window = window
        self.waiting = 0  # in this call
        self.room = 0  # what the node's own count allows
        self.returned: list[int] = []  # marks of takes that made nothing
        self.struck: list[float] = []  # seconds that the user is to wait for it

    @property
    def want(self) -> int:
        return min(self.waiting, self.room)

    def __bool__(self) -> bool:
        """Is there anything to say?"""
        return bool(self.want or self.returned or self.struck)


class Call(NamedTuple):
    """`asks` go to Redis, if there are any; `waiting` go through after it."""

    waiting: list[Waiting]
    asks: list[Ask]


class Row(NamedTuple):
    """The answer to one ask. Times in seconds from now on; `strikes` 0: no penalty is known."""

    granted: int
    wait_s: float  # until a further take would succeed, if too few were granted
    until_s: float  # end of the penalty; negative: it is over, and not forgotten
    strikes: int
    last_wait_s: float


class Gate:
    """Implements `limits.Shares`. `wake` is called when there is something for the next call."""

    def __init__(self, queue_max: int, wake: Callable[[], None]) -> None:
        self.away = False
        self.alone_n = 0  # decided by this node alone, so far
        self._queue_max, self._wake = queue_max, wake
        self._queue: deque[Waiting] = deque()
        self._tell: dict[SharedWindow, Ask] = {}
        self._under_way = 0

    def __len__(self) -> int:
        """How many wait, those of the call under way included."""
        return len(self._queue) + self._under_way

    @property
    def idle(self) -> bool:
        """The next call has nothing to do."""
        return not self._queue and not self._tell

    # ---- what comes ------------------------------------------------------------------------------

    def put(self, window: SharedWindow, now: float, then: Then) -> bool:
        """Run `then` when it is known what the window grants; False: too many wait, and it never
        runs.
        """
        if self.away and not len(self):
            self._run_alone((Waiting(window, now, then),))
            return True
        if len(self._queue) >= self._queue_max:
            return False
        self._queue.append(Waiting(window, now, then))
        self._wake()
        return True

    def returned(self, window: SharedWindow, mark: int) -> None:
        if (ask := self._about(window)) is not None:
            ask.returned.append(mark)

    def struck(self, window: SharedWindow, wait_s: float) -> None:
        if (ask := self._about(window)) is not None:
            ask.struck.append(wait_s)

    def _about(self, window: SharedWindow) -> Ask | None:
        ask = self._tell.get(window)
        if ask is None:
            if self.away or len(self._tell) >= TELL_MAX:
                return None
            ask = self._tell[window] = Ask(window)
            self._wake()
        return ask

    # ---- the calls -------------------------------------------------------------------------------

    def gather(self) -> Call:
        """The next call. It must come back to `decide` or `alone` before the next one is gathered."""
        assert not self._under_way
        queue, tell = self._queue, self._tell
        waiting = [queue.popleft() for _ in range(min(len(queue), CALL_MAX))]
        asks: dict[SharedWindow, Ask] = {}
        for window, came, _ in waiting:
            ask = asks.get(window)
            if ask is None:
                ask = asks[window] = tell.pop(window) if window in tell else Ask(window)
                ask.room = window.room(came)
            ask.waiting += 1
        for window in list(islice(tell, max(0, CALL_MAX - len(asks)))):
            asks[window] = tell.pop(window)
        self._under_way = len(waiting)
        return Call(waiting, [ask for ask in asks.values() if ask])

    def decide(self, call: Call, mark: int, rows: Sequence[Row], now: float) -> None:
        """Redis has answered, by its clock at `mark`."""
        for ask, row in zip(call.asks, rows, strict=True):
            window = ask.window
            if ask.want:
                window.grant(row.granted, mark, now + row.wait_s if row.granted < ask.want else 0.0)
            if row.strikes and window.penalty is not None:
                window.penalty.learn(now, now + row.until_s, row.strikes, row.last_wait_s)
        self._run(call.waiting)
        for ask in call.asks:
            for _ in range(ask.window.settle()):
                self.returned(ask.window, mark)

    def alone(self, call: Call) -> None:
        """No answer: this node's own count decides, for this call and for all that waits behind it.

        What was to be told is forgotten.
        """
        self.away = True
        self._tell.clear()
        self._run_alone(call.waiting)
        while self._queue:
            self._run_alone((self._queue.popleft(),))

    def back(self) -> None:
        """Redis answers again."""
        self.away = False

    def _run(self, waiting: Sequence[Waiting]) -> None:
        for _, came, then in waiting:
            then(came)
        self._under_way = 0

    def _run_alone(self, waiting: Sequence[Waiting]) -> None:
        self.alone_n += len(waiting)
        for window, came, then in waiting:
            window.grant(1, 0, 0.0)
            then(came)
            window.settle()
        self._under_way = 0
