"""One connection as a state machine, frames in, requests and verdicts out; and the user whose it is.

Pure.

    AWAIT_HELLO ──hello──► OPENING ──opened()──► LIVE ──close──► CLOSED
                              │ requests wait in `deferred`

`receive` reads one frame and says what follows (an Effect); the services carry it out and answer
through `Sink`. No clock: `now` is an argument, in seconds. What it decides: is this frame allowed
now (the table `_gate`), and are there too many.

The order and rate of its entries are decided by core/send_order.py, whose state is held here.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from chatd import errors, protocol
from chatd.core.rate_limit import TokenBucket
from chatd.core.send_order import UNTROUBLED, SendOrder
from chatd.errors import CloseCode
from chatd.ids import ConvId, DeviceId, UserId
from chatd.protocol import Hello, Request

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

    def own_order(self) -> SendOrder:
        """To be written to: made with the first entry that fails or is probed."""
        if self.order is UNTROUBLED:
            self.order = SendOrder()
        return self.order
