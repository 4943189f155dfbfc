"""One connection's conversation with chatd, as a state machine: frames in, requests and verdicts out. Pure.

    AWAIT_HELLO ──hello──► OPENING ──opened()──► LIVE ──close──► CLOSED
                              │ requests wait in `deferred`

`receive` reads one frame and says what follows (an Effect); the services carry it out and answer through `Sink`. No clock: `now` is an
argument, in seconds. What it decides: is this frame allowed now (the table `_gate`), are there too many, is an entry to be written,
only probed, or refused (`admit`), and what a failure means for the ones that come after it (`failed`, `limited`, `denied`).

The order of a sender's entries (invariant 10) rests on two maps by peer. `blocked`: after a retryable error to an entry, later ones in that
conversation are refused until its cid comes again or is given up. `cuts`: entries that were queued behind one that failed in its lane must not
be written either, and no more so when that one is back, for then it stands behind them. What is earlier and what later is told by the ids of
the requests: an entry that never got into a lane (too many frames, a full queue) must not stop those before it that did.

An entry that must wait before it can go to a lane (its conversation is being made, or it is asked whether all nodes together allow it) is seen twice.
`comes`, on arrival: refused if an earlier one is waited for; if it is that one, later ones may follow it. Then, in the order of arrival, `stands`:
what came before it may have failed meanwhile, as in a lane; and `judge`. An entry without a wait is admitted in one step (`admit`).

Sending again before `retry_ms` costs a penalty (`Penalty`), whatever the cid. What was on its way already is not held against the client, so there
must be a sign that it has read a refusal: it sends that cid again, or gives it up by `skip`. From then on every entry of the session before that time
is early.

A send over the rate limit is not refused at once: its cid may be known (a lost ok), and then the answer is free. So it goes down the
lane as a *probe*, which writes nothing; so does whatever follows it there while its answer is out.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from chatd import errors, protocol
from chatd.errors import CloseCode
from chatd.ids import Cid, ConvId, DeviceId, UserId
from chatd.limits import EARLY_SLACK_S, TokenBucket
from chatd.protocol import Entering, Hello, Request

if TYPE_CHECKING:
    from chatd.auth import Key
    from chatd.registry import User

DEFERRED_MAX: Final = 512  # requests before `welcome`; an outbox of 500 fits. To refuse just the last of them would break their order
BAD_FRAMES_MAX: Final = 20
THROTTLED_MAX: Final = 1_000
THROTTLED_FORGIVEN_PER_S: Final = 1.0  # who is a little too fast now and then may stay for ever; who goes on at 1 % over the rate may not

# Conversations of a session that wait for an entry. Past it the longest waiting one is let go: what was pipelined behind its entry, which is
# what the order is in danger from, has long arrived. Without a bound, sends to ever new names would fill the memory.
BLOCKS_MAX: Final = 1_000


class State(enum.Enum):
    AWAIT_HELLO = "await_hello"
    OPENING = "opening"
    LIVE = "live"
    CLOSED = "closed"


class Sink(Protocol):
    """What a session needs of its connection."""

    @property
    def address(self) -> str:
        """Where its client connects from."""

    def send(self, frame: bytes) -> None:
        """Queue a whole WebSocket frame; it goes out at the end of the loop turn or soon after (`flushing`)."""

    def close(self, code: int, reason: str) -> None:
        """Send what is queued, then close. Idempotent."""

    @property
    def is_paused(self) -> bool:
        """Its client is slower than what is sent: nothing more is to be read from the database for it."""

    async def drained(self) -> None:
        """Wait until the client takes more; returns at once where it does, or where the session has ended."""


class Reply(NamedTuple):
    """Answer with this frame, an error of this code; nothing else follows."""

    frame: bytes
    code: str


class End(NamedTuple):
    """Answer with this frame, if any, and close."""

    frame: bytes | None
    code: CloseCode
    reason: str


TOO_FAST: Final = End(None, CloseCode.RATE_LIMITED, "kept sending too many frames a second")


class Throttled(NamedTuple):
    """Too many frames a second: refuse this request. One that makes an entry blocks its conversation, as order asks."""

    request: Request
    retry_ms: int


Effect: TypeAlias = Request | Reply | End | Throttled | None


class Verdict(NamedTuple):
    """What `admit` says of an entry: write it, or only probe for its cid. `again`: it comes before the time that its sender was told."""

    probe: bool
    taken_at: float
    again: bool


class Block(NamedTuple):
    """A conversation waits for this entry. `id`: the request that failed; `until`: the time it was told to wait for, 0 if none."""

    cid: Cid
    id: int
    until: float


class Cut(NamedTuple):
    """What was queued up to request `id` stands behind this cid, which failed."""

    id: int
    cid: Cid


class Session:
    """State of one connection. `behind` and `held` are delivery's: see there."""

    __slots__ = (
        "active_at",
        "bad_frames",
        "behind",
        "blocked",
        "bounds",
        "cuts",
        "deferred",
        "device",
        "exp_ms",
        "frames",
        "held",
        "key",
        "last_id",
        "moved",
        "probing",
        "reads",
        "sink",
        "state",
        "throttled",
        "throttled_at",
        "user",
        "warned_until",
        "watching",
    )  # fmt: skip

    def __init__(self, sink: Sink, frames: TokenBucket, now: float, bounds: protocol.Bounds = protocol.DEFAULT_BOUNDS) -> None:
        self.sink = sink
        self.bounds = bounds
        self.state = State.AWAIT_HELLO
        self.frames = frames
        self.user: User | None = None
        self.device = DeviceId("")
        self.exp_ms = 0
        self.key: Key | None = None  # that its newest token was checked with; shared by all sessions of that key
        self.last_id = 0
        self.bad_frames = 0
        self.throttled = 0.0  # requests refused for too many frames a second, as far as they are not forgiven
        self.throttled_at = now  # as of then
        self.deferred: list[Request | Throttled] | None = None
        self.active_at = now
        self.blocked: dict[UserId, Block] | None = None  # by peer: the entry that must come again first
        self.cuts: dict[UserId, Cut] | None = None  # by peer: what of the queue must not be written
        self.probing: dict[UserId, int] | None = None  # by peer: probes whose answer is out
        self.behind: dict[ConvId, int] | None = None  # by conversation: seq up to which this session has been filled
        self.held: dict[tuple[ConvId, int], bytes] | None = None  # `ok`s that wait for the fill to reach their seq
        self.warned_until = 0.0  # this client knows that it is over the rate until then: it has answered a refusal that said so
        self.moved: set[tuple[ConvId, int]] | None = None  # while its welcome is made: (conversation, side) whose cursors moved
        self.reads = 0  # reads of the database under way for this session
        self.watching: tuple[UserId, ...] = ()

    @property
    def live(self) -> bool:
        return self.state is State.LIVE

    @property
    def gone(self) -> bool:
        return self.state is State.CLOSED

    # ---- frames in --------------------------------------------------------------------------------------------------------------

    def receive(self, payload: bytes, now: float) -> Effect:
        """What one text frame asks for. Never raises."""
        self.active_at = now
        try:
            request = protocol.decode(payload, self.last_id, self.bounds)
        except protocol.Fault as fault:
            return self._fault(fault, now)
        self.last_id = request.id
        if not self.frames.take(now):
            return self._throttle(request, now)
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
                return self._defer(request)
            case State.LIVE:
                return request
            case State.CLOSED:
                return None

    def _defer(self, what: Request | Throttled) -> Effect:
        self.deferred = self.deferred or []
        if len(self.deferred) >= DEFERRED_MAX:
            return End(None, CloseCode.OVERLOADED, "too many requests before `welcome`")
        self.deferred.append(what)
        return None

    def _refuse(self, id: int, error: errors.Refused) -> Reply:
        return Reply(protocol.err(id, error), error.code)

    def _fault(self, fault: protocol.Fault, now: float) -> Effect:
        if self.state is State.CLOSED:
            return None
        if not self.frames.take(now) and self._too_many(now):  # an answer costs the same as to a good frame
            return TOO_FAST
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
        return Reply(frame, fault.error.code)

    def _throttle(self, request: Request, now: float) -> Effect:
        if self.state is State.CLOSED:
            return None
        if self._too_many(now):
            return TOO_FAST
        throttled = Throttled(request, min(1_000 << int(self.throttled) // 100, 30_000))
        # Which conversation it blocks is not known before the listing.
        return self._defer(throttled) if self.state is State.OPENING else throttled

    def excess(self, now: float) -> End | None:
        """A frame over the rate that asks for nothing, so that no answer can refuse it."""
        return TOO_FAST if self._too_many(now) else None

    def _too_many(self, now: float) -> bool:
        """Count one more; is it the last straw?"""
        forgiven = (now - self.throttled_at) * THROTTLED_FORGIVEN_PER_S
        self.throttled, self.throttled_at = max(self.throttled - forgiven, 0.0) + 1, now
        return self.throttled > THROTTLED_MAX

    def opened(self) -> list[Request | Throttled]:
        """`welcome` is out: gives what waited for it, in order."""
        assert self.state is State.OPENING
        self.state = State.LIVE
        deferred, self.deferred = self.deferred or [], None
        return deferred

    # ---- order and rate of entries --------------------------------------------------------------------------------------------------

    def admit(self, peer: UserId, cid: Cid, now: float) -> Verdict | errors.Blocked:
        """May an entry that has just come in be written now? Takes a slot of the user's rate if so.

        Call it when the entry is about to be queued. Its result must come back in the order of the lane: to `probed` if it was a probe, and to
        `limited` or `failed` if it made nothing; or to `denied` if the lane does not take it.
        """
        if self.blocked and peer in self.blocked:
            again = self.comes(peer, cid, now)
            if isinstance(again, errors.Blocked):
                return again
            return self.judge(peer, again, now)
        return self.judge(peer, now < self.warned_until, now)

    def comes(self, peer: UserId, cid: Cid, now: float) -> bool | errors.Blocked:
        """An entry comes in. Refused if an earlier one is waited for; else: is it early, in spite of a `retry_ms` that its sender has read?"""
        if self.blocked and (block := self.blocked.get(peer)) is not None:
            if block.cid != cid:
                return _blocked(block.cid)
            self._answered(peer, block)
        return now < self.warned_until

    def _answered(self, peer: UserId, block: Block) -> None:
        """The client has read the refusal that blocked a conversation: it does as that said, or gives the entry up."""
        assert self.blocked is not None
        del self.blocked[peer]
        self.warned_until = max(self.warned_until, block.until - EARLY_SLACK_S)

    def stands(self, peer: UserId, cid: Cid, id: int) -> errors.Blocked | None:
        """An entry that had to wait is about to be queued, all before it are: may it be, or has one of those failed meanwhile?

        What got no place after it came in (a later id) does not stand before it, whatever it blocks.
        """
        if (waiting := self.overtaken(peer, id)) is not None:
            return _blocked(waiting)
        if self.blocked and (block := self.blocked.get(peer)) is not None and block.id < id:
            if block.cid != cid:
                return _blocked(block.cid)
            del self.blocked[peer]
        return None

    def judge(self, peer: UserId, again: bool, now: float) -> Verdict:
        """Write it, or only probe for it? Takes a slot of the user's rate if it is to be written. What comes back, and where, is as for `admit`."""
        assert self.user is not None
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

    def limited(self, peer: UserId, cid: Cid, id: int, again: bool, now: float) -> errors.Refused | End:
        """A probe found nothing: the entry is over the rate. Blocks the conversation until it comes again."""
        assert self.user is not None
        if (waiting := self._fell(peer, cid, id)) is not None:
            return waiting
        wait = max(self.user.window.wait(now), self.user.penalty.until - now, 0.0)
        verdict = self.user.penalty.refused(now, wait, again)
        assert self.blocked is not None
        self.blocked[peer] = self.blocked[peer]._replace(until=now + verdict.wait_s)
        if verdict.close:
            return End(None, CloseCode.RATE_LIMITED, "kept sending in spite of retry_ms")
        return errors.RateLimited(
            f"over {self.user.window.max_events} messages in {self.user.window.period_s:g} s: wait",
            retry_ms=max(1, math.ceil(verdict.wait_s * 1000)),
        )

    def failed(self, peer: UserId, cid: Cid, id: int, error: errors.Retryable) -> errors.Refused:
        """An entry in its lane was not written, or nobody knows. Blocks the conversation until it comes again."""
        return self._fell(peer, cid, id) or error

    def denied(self, peer: UserId, entry: Entering, error: errors.Retryable) -> errors.Refused:
        """An entry did not get into a lane: those before it that did go on. Blocks the conversation until it comes again."""
        waiting = self._wait_for(peer, entry.cid, entry.id)
        return error if waiting is None else _blocked(waiting)

    def overtaken(self, peer: UserId, id: int) -> Cid | None:
        """For an entry that a lane has queued: the cid before it that failed meanwhile. Then it must not be written."""
        if self.cuts and (cut := self.cuts.get(peer)) is not None and id <= cut.id:
            return cut.cid
        return None

    def _fell(self, peer: UserId, cid: Cid, id: int) -> errors.Blocked | None:
        """An entry failed in its lane. If an earlier one is waited for, that is the error to give."""
        waiting = self.overtaken(peer, id)
        if waiting is None or waiting == cid:
            waiting = self._wait_for(peer, cid, id)
        if waiting is not None:
            return _blocked(waiting)
        self.cuts = self.cuts or {}
        self.cuts[peer] = Cut(self.last_id, cid)
        _let_go(self.cuts)
        return None

    def _wait_for(self, peer: UserId, cid: Cid, id: int) -> Cid | None:
        """Block a conversation for an entry; gives the cid of an earlier one instead, if that is waited for."""
        self.blocked = self.blocked or {}
        block = self.blocked.get(peer)
        if block is not None and block.id <= id:
            return None if block.cid == cid else block.cid
        self.blocked[peer] = Block(cid, id, 0.0)
        _let_go(self.blocked)
        return None

    def skip(self, peer: UserId, cid: Cid) -> None:
        """The client gives up a cid: its conversation is free again."""
        if self.blocked and (block := self.blocked.get(peer)) is not None and block.cid == cid:
            self._answered(peer, block)


def _blocked(cid: Cid) -> errors.Blocked:
    return errors.Blocked("an earlier entry here waits to be sent again", cid=cid)


def _let_go(waiting: dict[UserId, Block] | dict[UserId, Cut]) -> None:
    if len(waiting) > BLOCKS_MAX:
        del waiting[next(iter(waiting))]
