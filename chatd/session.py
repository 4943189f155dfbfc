"""One connection's conversation with chatd, as a state machine: frames in, requests and verdicts out. Pure.

    AWAIT_HELLO ──hello──► OPENING ──opened()──► LIVE ──close──► CLOSED
                              │ requests wait in `deferred`

`receive` reads one frame and says what follows (an Effect); the services carry it out and answer through `Sink`. No clock: `now` is an
argument, in seconds. What it decides: is this frame allowed now (the table `_STATE`), are there too many, is an entry to be written,
only probed, or refused (`admit`), and what a result means for the ones that come after it (`settle`).

The order of a sender's entries (invariant 10) rests on `blocked`: after a retryable error to one, later ones in that conversation are
refused until that cid comes again or is given up. A send over the rate limit is not refused at once: its cid may be known (a lost ok), and
then the answer is free. So it goes down the lane as a *probe*, which writes nothing; so does whatever follows it there while its answer is out.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from chatd import errors, protocol
from chatd.errors import CloseCode
from chatd.ids import Cid, ConvId, DeviceId, UserId
from chatd.limits import TokenBucket
from chatd.protocol import Hello, Request

if TYPE_CHECKING:
    from chatd.registry import User

DEFERRED_MAX: Final = 64
BAD_FRAMES_MAX: Final = 20
THROTTLED_MAX: Final = 1_000


class State(enum.Enum):
    AWAIT_HELLO = "await_hello"
    OPENING = "opening"
    LIVE = "live"
    CLOSED = "closed"


class Sink(Protocol):
    """What a session needs of its connection."""

    def send(self, frame: bytes) -> None:
        """Queue a whole WebSocket frame; it goes out at the end of the loop turn."""

    def close(self, code: int, reason: str) -> None:
        """Send what is queued, then close. Idempotent."""


class Reply(NamedTuple):
    """Answer with this frame; nothing else follows."""

    frame: bytes


class End(NamedTuple):
    """Answer with this frame, if any, and close."""

    frame: bytes | None
    code: CloseCode
    reason: str


class Throttled(NamedTuple):
    """Too many frames a second: refuse this request. One that makes an entry blocks its conversation, as order asks."""

    request: Request
    retry_ms: int


Effect: TypeAlias = Request | Reply | End | Throttled | None


class Verdict(NamedTuple):
    """What `admit` says of an entry: write it, or only probe for its cid."""

    probe: bool
    taken_at: float
    again: bool


class Session:
    """State of one connection. `behind` and `held` are delivery's: see there."""

    __slots__ = (
        "sink", "state", "frames", "user", "device", "exp_ms", "last_id", "bad_frames", "throttled", "deferred", "active_at",
        "blocked", "probing", "behind", "held", "reads", "filling", "watching", "drained", "born",
    )  # fmt: skip

    def __init__(self, sink: Sink, frames: TokenBucket, now: float) -> None:
        self.sink = sink
        self.state = State.AWAIT_HELLO
        self.frames = frames
        self.user: User | None = None
        self.device = DeviceId("")
        self.exp_ms = 0
        self.last_id = 0
        self.bad_frames = 0
        self.throttled = 0  # requests refused for too many frames a second
        self.deferred: list[Request] | None = None
        self.born = self.active_at = now
        self.blocked: dict[UserId, Cid] | None = None  # by peer: the cid that must come again first
        self.probing: dict[UserId, int] | None = None  # by peer: probes whose answer is out
        self.behind: dict[ConvId, int] | None = None  # by conversation: seq up to which this session has been filled
        self.held: dict[tuple[ConvId, int], bytes] | None = None  # `ok`s that wait for the fill to reach their seq
        self.reads = 0  # reads of the database under way for this session
        self.filling = False
        self.watching: tuple[UserId, ...] = ()
        self.drained: object = None

    # ---- frames in --------------------------------------------------------------------------------------------------------------

    def receive(self, payload: bytes, now: float) -> Effect:
        """What one text frame asks for. Never raises."""
        self.active_at = now
        try:
            request = protocol.decode(payload, self.last_id)
        except protocol.Fault as fault:
            return self._fault(fault)
        self.last_id = request.id
        if not self.frames.take(now):
            return self._throttle(request)
        state = self.state
        if state is State.LIVE and type(request) is not Hello:
            return request
        return self._gate(request)

    def _gate(self, request: Request) -> Effect:
        """The table of states but its common cell: LIVE takes every request but `hello`."""
        match self.state:
            case State.AWAIT_HELLO:
                if type(request) is Hello:
                    self.state = State.OPENING
                    return request
                return self._refuse(request.id, errors.BadState("say `hello` first"))
            case State.OPENING | State.LIVE if type(request) is Hello:
                return self._refuse(request.id, errors.BadState("this connection has said `hello` already"))
            case State.OPENING:
                self.deferred = self.deferred or []
                if len(self.deferred) >= DEFERRED_MAX:
                    return self._refuse(request.id, errors.Overloaded("too many requests before `welcome`", retry_ms=1_000))
                self.deferred.append(request)
                return None
            case State.LIVE:
                return request
            case State.CLOSED:
                return None

    def _refuse(self, id: int, error: errors.Refused) -> Reply:
        return Reply(protocol.err(id, error))

    def _fault(self, fault: protocol.Fault) -> Effect:
        # A request that could be read used up its id; an unreadable one did not show any.
        if fault.error.code != "bad_id":
            self.last_id = max(self.last_id, fault.id)
        frame = protocol.err(fault.id, fault.error)
        if self.state is State.AWAIT_HELLO and fault.error.code == "bad_version":
            return End(frame, CloseCode.NORMAL, "bad_version")
        if fault.id == 0:
            self.bad_frames += 1
            if self.bad_frames > BAD_FRAMES_MAX:
                return End(frame, CloseCode.BAD_FRAMES, "too many unreadable frames")
        return Reply(frame)

    def _throttle(self, request: Request) -> Effect:
        self.throttled += 1
        if self.throttled > THROTTLED_MAX:
            return End(None, CloseCode.RATE_LIMITED, "kept sending too many frames a second")
        return Throttled(request, min(1_000 << self.throttled // 100, 30_000))

    def opened(self) -> list[Request]:
        """`welcome` is out: gives the requests that waited for it, in order."""
        assert self.state is State.OPENING
        self.state = State.LIVE
        deferred, self.deferred = self.deferred or [], None
        return deferred

    # ---- order and rate of entries --------------------------------------------------------------------------------------------------

    def admit(self, peer: UserId, cid: Cid, now: float) -> Verdict | errors.Blocked:
        """May an entry be written now? Takes a slot of the user's rate if so.

        Call it when the entry is about to be queued, and `settle` with its result, in the order of the lane.
        """
        assert self.user is not None
        again = False
        if self.blocked and (waiting := self.blocked.get(peer)) is not None:
            if waiting != cid:
                return errors.Blocked("an earlier entry here waits to be sent again", cid=waiting)
            del self.blocked[peer]
            again = True
        if self.probing and peer in self.probing:
            self.probing[peer] += 1
            return Verdict(True, 0.0, again)
        if now >= self.user.penalty.until and self.user.window.take(now) == 0.0:
            return Verdict(False, now, again)
        self.probing = self.probing or {}
        self.probing[peer] = self.probing.get(peer, 0) + 1
        return Verdict(True, 0.0, again)

    def probed(self, peer: UserId) -> None:
        """A probe's answer is in, whatever it is."""
        assert self.probing is not None
        self.probing[peer] -= 1
        if not self.probing[peer]:
            del self.probing[peer]

    def limited(self, peer: UserId, cid: Cid, again: bool, now: float) -> errors.Refused | End:
        """A probe found nothing: the entry is over the rate. Blocks the conversation until it comes again."""
        assert self.user is not None
        if (waiting := self._wait_for(peer, cid)) is not None:
            return waiting
        wait = max(self.user.window.wait(now), self.user.penalty.until - now, 0.0)
        verdict = self.user.penalty.refused(now, wait, again)
        if verdict.close:
            return End(None, CloseCode.RATE_LIMITED, "kept sending in spite of retry_ms")
        return errors.RateLimited(
            f"over {self.user.window.max_events} messages in {self.user.window.period_s:g} s: wait",
            retry_ms=max(1, math.ceil(verdict.wait_s * 1000)),
        )

    def failed(self, peer: UserId, cid: Cid, error: errors.Retryable) -> errors.Refused:
        """An entry was not written, or nobody knows. Blocks the conversation until it comes again."""
        return self._wait_for(peer, cid) or error

    def _wait_for(self, peer: UserId, cid: Cid) -> errors.Blocked | None:
        """Block a conversation for a cid; if it waits for an earlier one already, that is the error to give."""
        self.blocked = self.blocked or {}
        waiting = self.blocked.setdefault(peer, cid)
        if waiting != cid:
            return errors.Blocked("an earlier entry here waits to be sent again", cid=waiting)
        return None

    def skip(self, peer: UserId, cid: Cid) -> None:
        """The client gives up a cid: its conversation is free again."""
        if self.blocked and self.blocked.get(peer) == cid:
            del self.blocked[peer]
