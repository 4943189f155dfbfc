"""One connection as a state machine, frames in, requests and verdicts out; and the user whose it is.

Pure.

    AWAIT_HELLO ──hello──► OPENING ──opened()──► LIVE ──close──► CLOSED
                              │ requests wait in `deferred`

`receive` reads one frame and says what follows (an Effect); the services carry it out and answer
through `Sink`. No clock: `now` is an argument, in seconds. What it decides: is this frame allowed
now (the table `_gate`), are there too many, is an entry to be written, only probed, or refused
(`admit`), and what a failure means for the ones that come after it (`failed`, `limited`,
`not_queued`).

The order of its entries is in core/send_order.py.

A send over the rate limit is not refused at once: its cid may be known (a lost ok), and then the
answer is free. So it goes down the lane as a *probe*, which writes nothing; so does whatever
follows it there while its answer is out.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from chatd import errors, protocol
from chatd.core.rate_limit import TokenBucket
from chatd.core.send_order import UNTROUBLED, SendOrder
from chatd.errors import CloseCode
from chatd.ids import Cid, ConvId, DeviceId, UserId
from chatd.protocol import Entering, Hello, Request

if TYPE_CHECKING:
    from chatd.core.conversation import Conversation
    from chatd.core.identity import Key
    from chatd.core.rate_limit import Penalty, SlidingWindow
    from chatd.core.recent_conversations import Recent

# Requests before `welcome`; an outbox of 500 fits. To refuse just the last of them would break
# their order
DEFERRED_MAX: Final = 512
BAD_FRAMES_MAX: Final = 20
THROTTLED_MAX: Final = 1_000
# Who is a little too fast now and then may stay for ever; who goes on at 1 % over the rate may not
THROTTLED_FORGIVEN_PER_S: Final = 1.0


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
        """Queue a whole WebSocket frame; it goes out at the end of the loop turn or soon after
        (`flushing`).
        """

    def close(self, code: int, reason: str) -> None:
        """Send what is queued, then close. Idempotent."""

    @property
    def is_paused(self) -> bool:
        """Its client is slower than what is sent: nothing more is to be read from the database for
        it.
        """

    async def drained(self) -> None:
        """Wait until the client takes more; returns at once where it does, or where the session has
        ended.
        """


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
    """Too many frames a second: refuse this request.

    One that makes an entry blocks its conversation, as order asks.
    """

    request: Request
    retry_ms: int


Effect: TypeAlias = Request | Reply | End | Throttled | None


class Verdict(NamedTuple):
    """What `admit` says of an entry: write it, or only probe for its cid.

    `taken_at`: when its slot of the rate was taken, 0: none was; `resent_early`: before the
    `retry_ms` that its sender has read.
    """

    probe: bool
    taken_at: float
    resent_early: bool


class User:
    """A user who has, or just had, a session on this node."""

    __slots__ = (
        "early",
        "hellos_full_at",
        "id",
        "idle_since",
        "loaded",
        "new_convs",
        "peers",
        "penalty",
        "reads",
        "recent",
        "sessions",
        "unsure",
        "window",
    )

    def __init__(self, id: UserId, window: SlidingWindow, penalty: Penalty, new_convs: SlidingWindow) -> None:
        self.id = id
        self.sessions: dict[DeviceId, Session] = {}
        self.peers: dict[UserId, Conversation] = {}
        self.window = window
        self.penalty = penalty
        self.new_convs = new_convs
        self.loaded = False  # all conversations are in `peers`
        self.unsure = False  # but for those that began while they were listed: it is being looked again
        self.early: dict[ConvId, int] | None = None  # seqs that other nodes told of before the listing was there
        self.idle_since: float | None = None
        self.recent: Recent | None = None  # from the first question for it until the last session ends
        self.hellos_full_at = 0.0  # core/hello_rates.py
        self.reads = 0  # of all its sessions: asked for, and not yet answered to the last byte

    @property
    def counts_until(self) -> float:
        """When its limits are as good as new."""
        return max(self.window.empty_at, self.penalty.forgotten_at, self.new_convs.empty_at)


class Session:
    """State of one connection. Others read its slots, and change them by its methods."""

    __slots__ = (
        "active_at",
        "bad_frames",
        "behind",
        "bounds",
        "deferred",
        "device",
        "exp_ms",
        "frames",
        "held",
        "key",
        "last_id",
        "moved",
        "order",
        "reads",
        "sink",
        "state",
        "throttled",
        "throttled_at",
        "user",
        "watching",
    )  # fmt: skip

    def __init__(
        self, sink: Sink, frames: TokenBucket, now: float, bounds: protocol.Bounds = protocol.DEFAULT_BOUNDS
    ) -> None:
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
        self.order = UNTROUBLED  # of its entries; its own from the first one that fails or is probed
        self.behind: dict[ConvId, int] | None = None  # by conversation: seq up to which this session has been filled
        self.held: dict[tuple[ConvId, int], bytes] | None = None  # `ok`s that wait for the fill to reach their seq
        # While its welcome is made: (conversation, side) whose cursors moved
        self.moved: set[tuple[ConvId, int]] | None = None
        self.reads = 0  # reads of the database under way for this session
        self.watching: tuple[UserId, ...] = ()

    @property
    def live(self) -> bool:
        return self.state is State.LIVE

    @property
    def gone(self) -> bool:
        return self.state is State.CLOSED

    # ---- who it is -------------------------------------------------------------------------------

    def checked_with(self, key: Key) -> None:
        """Its token was checked with this key: from now on the removal of the key ends the session
        (net/revocation.py).
        """
        self.key = key

    def identify(self, user: User, hello: Hello, exp_ms: int) -> None:
        """Its hello was right. `exp_ms`: when the token ends, ms since 1970."""
        self.user, self.device, self.watching = user, hello.device, hello.watch
        self.exp_ms = exp_ms

    def refresh(self, exp_ms: int, key: Key) -> None:
        """A newer token takes the place of the one before."""
        self.exp_ms, self.key = exp_ms, key

    def watch(self, users: tuple[UserId, ...]) -> tuple[UserId, ...]:
        """It watches these from now on; gives whom it watched before."""
        before, self.watching = self.watching, users
        return before

    def end(self) -> None:
        """Its connection is closed."""
        self.state = State.CLOSED

    # ---- reads of the database -------------------------------------------------------------------

    def read_begins(self) -> None:
        self.reads += 1

    def read_ends(self) -> None:
        self.reads -= 1

    # ---- what it misses: live entries pass it by, and chat/resync.py reads them from the log -----

    def miss(self, conv: ConvId, after: int) -> None:
        """It has this conversation up to seq `after`, or less if it missed some before."""
        self.behind = self.behind or {}
        self.behind[conv] = min(after, self.behind.get(conv, after))

    def filled(self, conv: ConvId, upto: int) -> None:
        """It has this conversation up to a seq, and misses what comes after."""
        self.behind = self.behind or {}
        self.behind[conv] = upto

    def caught_up(self, conv: ConvId) -> None:
        """It misses nothing of this conversation any more: its entries are pushed as they are
        delivered.
        """
        if self.behind is not None:
            self.behind.pop(conv, None)
            self.behind = self.behind or None

    def hold(self, conv: ConvId, seq: int, frame: bytes) -> None:
        """Keep an `ok` until the fill reaches its seq, whose place it takes."""
        self.held = self.held or {}
        self.held[conv, seq] = frame

    def take_held(self, conv: ConvId, seq: int) -> bytes | None:
        """The `ok` that takes the place of this entry, if there is one."""
        return self.held.pop((conv, seq), None) if self.held else None

    def cursor_moved(self, conv: ConvId, side: int) -> None:
        """A cursor moved while its welcome is made, which may tell an older one."""
        self.moved = self.moved or set()
        self.moved.add((conv, side))

    def take_moved(self) -> set[tuple[ConvId, int]]:
        """The cursors that moved since, as (conversation, side); once the welcome is out they are
        pushed.
        """
        moved, self.moved = self.moved or set(), None
        return moved

    # ---- frames in -------------------------------------------------------------------------------

    def receive(self, payload: bytes, now: float) -> Effect:
        """What one text frame asks for. Never raises."""
        self.active_at = now
        try:
            request = protocol.decode(payload, self.last_id, self.bounds)
        except protocol.RequestFault as fault:
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

    def _fault(self, fault: protocol.RequestFault, now: float) -> Effect:
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

    # ---- order and rate of entries ---------------------------------------------------------------

    def own_order(self) -> SendOrder:
        """To be written to: made with the first entry that fails or is probed."""
        if self.order is UNTROUBLED:
            self.order = SendOrder()
        return self.order

    def admit(self, peer: UserId, cid: Cid, now: float) -> Verdict | errors.Blocked:
        """May an entry that has just arrived be written now? Takes a slot of the user's rate if so.

        Call it when the entry is about to be queued. Its result must come back in the order of the
        lane: to `SendOrder.probed` if it was a probe, and to `limited` or `failed` if it made
        nothing; or to `not_queued` if the lane does not take it. An entry that must wait before it
        can be queued is seen twice instead: by `SendOrder.arrive`, then by `SendOrder.recheck` and
        `judge`.
        """
        order = self.order
        if order.blocked and peer in order.blocked:
            resent_early = order.arrive(peer, cid, now)
            if isinstance(resent_early, errors.Blocked):
                return resent_early
            return self.judge(peer, resent_early, now)
        return self.judge(peer, now < order.warned_until, now)

    def judge(self, peer: UserId, resent_early: bool, now: float) -> Verdict:
        """Write it, or only probe for it?

        Takes a slot of the user's rate if it is to be written. What comes back, and where, is as
        for `admit`.
        """
        user, probing = self.user, self.order.probing
        assert user is not None
        if not (probing and peer in probing) and now >= user.penalty.until and user.window.take(now) == 0.0:
            return Verdict(False, now, resent_early)
        self.own_order().probe(peer)
        return Verdict(True, 0.0, resent_early)

    def limited(self, peer: UserId, cid: Cid, id: int, resent_early: bool, now: float) -> errors.Refused | End:
        """A probe found nothing: the entry is over the rate.

        Blocks the conversation until it is sent again.
        """
        assert self.user is not None
        order = self.own_order()
        if (blocked := order.failed(peer, cid, id, self.last_id)) is not None:
            return blocked
        wait = max(self.user.window.wait(now), self.user.penalty.until - now, 0.0)
        verdict = self.user.penalty.refused(now, wait, resent_early)
        order.wait_until(peer, now + verdict.wait_s)
        if verdict.close:
            return End(None, CloseCode.RATE_LIMITED, "kept sending in spite of retry_ms")
        return errors.RateLimited(
            f"over {self.user.window.max_events} messages in {self.user.window.period_s:g} s: wait",
            retry_ms=max(1, math.ceil(verdict.wait_s * 1000)),
        )

    def failed(self, peer: UserId, cid: Cid, id: int, error: errors.Retryable) -> errors.Refused:
        """An entry in its lane was not written, or nobody knows.

        Blocks the conversation until it is sent again; gives the error to answer with.
        """
        return self.own_order().failed(peer, cid, id, self.last_id) or error

    def not_queued(self, peer: UserId, entry: Entering, error: errors.Retryable) -> errors.Refused:
        """An entry did not get into a lane: those before it that did go on.

        Blocks the conversation and gives the error, as `failed`.
        """
        return self.own_order().not_queued(peer, entry.cid, entry.id) or error
