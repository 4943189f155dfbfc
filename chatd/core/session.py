"""A session: one connection as a state machine, payloads in, effects out; and its user. Pure.

    AWAIT_HELLO ──hello──► OPENING ──opened()──► LIVE ──close──► CLOSED
                              │ requests wait in `deferred`

`receive` decodes one payload and gives an Effect (core/effects.py); chat carries it out and answers
through `Sink`. `now` is an argument, in seconds. A session decides whether a request is allowed in
its state (the table in `_allow`), and whether its frames are too many.

core/send_order.py decides the order and rate of its entries; the state for that is held here. The
limit of its frames is in core/frame_rate.py, and what it has not got yet in core/missed.py.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from chatd import errors, protocol
from chatd.core.effects import TOO_FAST, Effect, End, Reply, Throttled
from chatd.core.frame_rate import FrameRate
from chatd.core.missed import Missed
from chatd.core.send_order import UNTROUBLED, SendOrder
from chatd.core.sink import Sink
from chatd.errors import CloseCode
from chatd.ids import ConvId, DeviceId, UserId
from chatd.protocol import Hello, Request

if TYPE_CHECKING:
    from collections import deque

    from chatd.core.conversation import Conversation
    from chatd.core.identity import Key
    from chatd.core.let_go import Delivered
    from chatd.core.rate_limit import Penalty, SlidingWindow
    from chatd.core.recent_conversations import Recent
    from chatd.core.snapshot import Snapshot

# Requests before `welcome`: an outbox of 500 fits. Past it the connection is closed, because
# refusing only the last ones would break their order.
DEFERRED_MAX: Final = 512
BAD_FRAMES_MAX: Final = 20  # unreadable frames of a connection


class State(enum.Enum):
    AWAIT_HELLO = "await_hello"
    OPENING = "opening"
    LIVE = "live"
    CLOSED = "closed"


# For the path of a message: an attribute of an Enum takes 0.12 us, a global 0.02 (Python 3.11)
LIVE: Final = State.LIVE


class User:
    """A user who is held: has a session on this node, or had one within `conversations.LINGER_S`.

    `peers`: the user's conversations by the other participant. `window`, `penalty`: the rate limit
    of entries. `new_convs`: the limit of new conversations.
    """

    __slots__ = (
        "early", "hellos_full_at", "id", "idle_since", "let_go", "loaded", "new_convs", "peers", "penalty",
        "reads", "recent", "sessions", "snapshot", "unproven", "unsure", "visible", "window",
    )  # fmt: skip

    def __init__(self, id: UserId, window: SlidingWindow, penalty: Penalty, new_convs: SlidingWindow) -> None:
        self.id = id
        self.sessions: dict[DeviceId, Session] = {}
        self.peers: dict[UserId, Conversation] = {}
        self.window = window
        self.penalty = penalty
        self.new_convs = new_convs
        self.loaded = False  # all conversations are in `peers`
        self.unsure = False  # except some that began during the listing: it is being repeated
        self.early: dict[ConvId, int] | None = None  # seqs that other nodes announced during the listing
        self.idle_since: float | None = None  # seconds; None while there is a session
        self.recent: Recent | None = None  # from the first page asked for until the last session ends
        self.hellos_full_at = 0.0  # core/hello_rates.py
        self.reads = 0  # reads of all sessions that are not yet answered completely
        # Where only conversations in use are held: the oldest one in which a session was listed
        self.snapshot: Snapshot | None = None
        self.let_go: Delivered | None = None  # what was delivered of those that were let go
        self.unproven = 0  # transaction of one that was loaded while no snapshot was known
        self.visible: tuple[UserId, ...] = ()  # watched users whose presence is shown, in order


class Session(Missed):
    """The state of one connection. Other modules read its slots and change them by its methods."""

    __slots__ = (
        "active_at",
        "bad_frames",
        "bounds",
        "deferred",
        "device",
        "exp_ms",
        "frames",
        "key",
        "last_id",
        "order",
        "position",
        "reads",
        "sink",
        "state",
        "user",
        "waiting",
        "watching",
    )  # fmt: skip

    def __init__(
        self, sink: Sink, frames: FrameRate, now: float, bounds: protocol.Bounds = protocol.DEFAULT_BOUNDS
    ) -> None:
        super().__init__()
        self.sink = sink
        self.bounds = bounds
        self.state = State.AWAIT_HELLO
        self.frames = frames
        self.user: User | None = None
        self.device = DeviceId("")
        self.exp_ms = 0  # when the newest token expires, ms since 1970
        self.key: Key | None = None  # of the newest token; the sessions of a key share the object
        self.last_id = 0  # of the last request
        self.bad_frames = 0
        self.deferred: list[Request | Throttled] | None = None
        self.active_at = now  # of the last frame, in seconds
        self.order = UNTROUBLED  # of its entries; its own from the first one that fails or is probed
        self.reads = 0  # reads of the database under way for this session
        self.position = 0  # of the log at its hello: what its client saw before is not beyond that (0: not kept)
        self.watching: tuple[UserId, ...] = ()
        self.waiting: deque[tuple[Effect, float]] | None = None  # chat/waiting_requests.py

    @property
    def live(self) -> bool:
        return self.state is LIVE

    @property
    def gone(self) -> bool:
        return self.state is State.CLOSED

    # ---- identity --------------------------------------------------------------------------------

    def checked_with(self, key: Key) -> None:
        """Its token was checked with this key, whose removal ends it (net/revocation.py)."""
        self.key = key

    def identify(self, user: User, hello: Hello, exp_ms: int) -> None:
        """Its hello was accepted. `exp_ms`: when the token expires, ms since 1970."""
        self.user, self.device, self.watching = user, hello.device, hello.watch
        self.exp_ms = exp_ms

    def listed(self, position: int) -> None:
        """Its conversations were read; the log was on disk up to `position` then, or further."""
        self.position = position

    def refresh(self, exp_ms: int, key: Key) -> None:
        """Replace the token by a newer one."""
        self.exp_ms, self.key = exp_ms, key

    def watch(self, users: tuple[UserId, ...]) -> tuple[UserId, ...]:
        """Watch these users; gives those watched before."""
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

    # ---- input -----------------------------------------------------------------------------------

    def receive(self, payload: bytes, now: float) -> Effect:
        """The effect of one payload. Never raises."""
        self.active_at = now
        try:
            request = protocol.decode(payload, self.last_id, self.bounds)
        except protocol.RequestFault as fault:
            return self._fault(fault, now)
        self.last_id = request.id
        if not self.frames.take(now):
            return self._throttle(request, now)
        if self.state is LIVE and type(request) is not Hello:
            return request
        return self._allow(request)

    def _allow(self, request: Request) -> Effect:
        """The table of states and requests, without the common case: a live session, no hello."""
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
        if not self.frames.take(now) and self.frames.too_many(now):  # its answer costs as much as any other
            return TOO_FAST
        # A request that could be read has used its id; an unreadable one has none.
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
        if self.frames.too_many(now):
            return TOO_FAST
        throttled = Throttled(request, self.frames.retry_ms)
        # Before the listing it is not known which conversation it blocks.
        return self._defer(throttled) if self.state is State.OPENING else throttled

    def opened(self) -> list[Request | Throttled]:
        """`welcome` is sent; gives the requests that waited for it, in order."""
        assert self.state is State.OPENING
        self.state = State.LIVE
        deferred, self.deferred = self.deferred or [], None
        return deferred

    def own_order(self) -> SendOrder:
        """The order of this session to write to, made when an entry first fails or is probed."""
        if self.order is UNTROUBLED:
            self.order = SendOrder()
        return self.order
