"""The protocols by which services know other nodes, shared rate limits, and each other. Pure.

    OtherNodes   Relay (cluster, over Redis)   or  Alone      which other nodes have a user;
                                                              entries, receipts, typing for them
    Admission    SharedLimits (over Redis)     or  OwnCount   may this user send, or open a
                                                              conversation, now?

Which of the two it is, the node decides once, at construction. No service asks whether there are
other nodes, except for two facts of the log and of time that the ports give themselves:
`OtherNodes.share_log` and `Admission.decides_at_once`.

The other protocols keep the pipeline of sends (chat/send.py) free of I/O. Each has one
implementation:

    EntryLanes         Lanes            ConversationMaker   NewConversations
    EntryLane          Lane
    CommittedEntries   Delivery         FirstSends          SendPipeline
    UnknownOutcomes    Outcomes
    SendCounts         Metrics          SendLog             SendLines
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from chatd.core.rate_limit import Penalty, SlidingWindow

if TYPE_CHECKING:
    from chatd.core.batch import Item
    from chatd.core.conversation import Conversation
    from chatd.core.session import Session, User
    from chatd.errors import Refused, Retryable
    from chatd.ids import ConvId, UserId
    from chatd.postgres.connection import Backend
    from chatd.protocol import Entering

NEW_PERIOD_S: Final = 3_600.0  # of the rate limit of new conversations


class OtherNodes(Protocol):
    """The other nodes on this log. No method raises.

    `me` and `peer`: users as they are in memory here, None where they are not.
    """

    @property
    def share_log(self) -> bool:
        """Whether others write to the log, so that entries in it may not be delivered here yet."""

    @property
    def hears(self) -> bool:
        """Whether entries of others arrive here as they are written, if nothing goes wrong."""

    async def arrive(self, user: UserId, watch: Iterable[UserId]) -> None:
        """A session of the user begins. Bounded in time.

        Returns once messages of other nodes for the user arrive here, and the presence of the users
        in `watch` is known.
        """

    async def look(self, users: Iterable[UserId]) -> None:
        """Return once it is known which of these are online elsewhere. Bounded in time."""

    async def look_back(self, user: User) -> None:
        """A session of a user who is also elsewhere is live now.

        Looks whether anything was missed before the other node knew of this session.
        """

    def pages(self) -> int:
        """How many pages of the change feed have been read so far."""

    def release(self, users: Iterable[UserId]) -> None:
        """These users are no longer in memory."""

    def channels(self, me: User | None, peer_id: UserId, peer: User | None) -> tuple[UserId, ...]:
        """The users to whose channels an entry of `me` to `peer_id` is published."""

    def entry(self, channels: tuple[UserId, ...], conv: Conversation, item: Item, payload: bytes) -> None:
        """Publish the entry just delivered here. `payload`: its JSON without the cid."""

    def ahead(self, conv: Conversation, first: int, ts: int, items: list[Item]) -> None:
        """Publish committed entries, from seq `first` on, that wait here for others before them."""

    def receipt(self, conv: Conversation, side: int, me: User) -> None:
        """Publish the cursors of one side, `me`, which have just moved here."""

    def typing(self, conv: Conversation, side: int, payload: bytes) -> None:
        """Publish that one side types here."""


class Windows(NamedTuple):
    """The rate limits of a user, held in core/session.py `User`."""

    window: SlidingWindow
    penalty: Penalty
    new_convs: SlidingWindow


class Rates(NamedTuple):
    """The settings of a user's rate limits."""

    messages: int
    per_s: float
    strikes_max: int
    new_per_hour: int


class Admission(Protocol):
    """Decides what a user's rate limits allow. No method raises."""

    @property
    def decides_at_once(self) -> bool:
        """Whether `put` runs its callback before it returns.

        Then a window may also be taken from directly.
        """

    def windows(self, user: UserId) -> Windows:
        """A new user's limits."""

    def put(self, window: SlidingWindow, then: Callable[[float], None]) -> bool:
        """Run `then(arrived_at)` once the window's grant is known, in the order of the calls.

        False: too many wait, and it never runs.
        """

    async def take(self, window: SlidingWindow) -> tuple[float, float]:
        """Take a slot: (wait in seconds, when it was taken), as `SlidingWindow.take`."""

    async def idle(self) -> None:
        """Wait until nothing waits in `put`."""


# ---- the pipeline of sends (send.py) -------------------------------------------------------------


class FirstSend(NamedTuple):
    """A send that waits for its conversation, or a change behind one.

    `resent_early`: as from `SendOrder.arrive`.
    """

    session: Session
    user: User
    request: Entering
    resent_early: bool


class FirstSends(Protocol):
    """Continues sends that waited for a conversation: the pipeline. Neither raises."""

    def made(self, first: FirstSend, conv: Conversation) -> None:
        """The conversation exists."""

    def not_made(self, first: FirstSend, error: Refused) -> None:
        """The conversation cannot be made."""


class ConversationMaker(Protocol):
    """Makes the conversations of first messages: `NewConversations`."""

    @property
    def waiting(self) -> int:
        """Sends that wait, of all users."""

    def waits(self, user: UserId, to: UserId) -> bool:
        """Sends between these two wait: a later one must not overtake them."""

    def put(self, first: FirstSend, sends: FirstSends, now: float) -> Retryable | None:
        """Queue a send until its conversation exists; gives the refusal if it may not wait.

        It is given back to `sends`, in order, and never before this returns.
        """


class EntryLane(Protocol):
    """A lane of the log: `Lane`."""

    def submit(self, item: Item) -> bool:
        """Queue an entry; False: the lane is full, and nothing was queued.

        Its outcome is given to `append_answer.Outcome`.
        """


class EntryLanes(Protocol):
    """The lanes of the log: `Lanes`."""

    def choose(self, item: Item) -> EntryLane:
        """The lane to submit an entry to."""


class CommittedEntries(Protocol):
    """Delivers entries of the log to the sessions: `Delivery`.

    `seq`: the entry's; `ts`: ms since 1970, database clock.
    """

    def deliver(self, conv: Conversation, first: int, ts: int, items: list[Item], now: float) -> None:
        """New entries of one conversation, from seq `first` on."""

    def repeat(self, item: Item, seq: int, ts: int) -> None:
        """An item whose entry was in the log already."""


class UnknownOutcomes(Protocol):
    """Looks up what became of batches: `Outcomes`."""

    def outcome_unknown(self, convs: set[ConvId], writers: set[Backend]) -> None:
        """Batches that wrote to these have an unknown outcome: look whether they committed."""


class SendCounts(Protocol):
    """The counters that the pipeline moves: `Metrics`."""

    sends: int
    sends_err: int
    limit_hits: int
    frames_throttled: int

    def error(self, code: str) -> None:
        """A request was answered with this error."""


class SendLog(Protocol):
    """The log lines of the pipeline: `SendLines`."""

    def limit_hit(self, item: Item, now: float) -> None:
        """An entry is over the rate."""

    def refused(self, item: Item, error: Refused) -> None:
        """An item that was in a lane is answered with an error."""

    def bug(self, user: UserId, error: Exception) -> None:
        """An unexpected exception: a bug in chatd."""


class SessionLog(Protocol):
    """The log lines of sessions: `net.access_log.AccessLog`."""

    def opened(self, session: Session) -> None:
        """A hello was answered with a welcome."""

    def hello_refused(self, session: Session, device: str, error: Refused) -> None:
        """A hello was refused. `device`: as the hello named it."""

    def refresh_refused(self, session: Session, error: Refused) -> None:
        """A new token was refused."""


# ---- a node alone --------------------------------------------------------------------------------


class Alone:
    """There are no other nodes. Implements OtherNodes."""

    share_log: Final = False
    hears: Final = False

    async def arrive(self, user: UserId, watch: Iterable[UserId]) -> None: ...

    async def look(self, users: Iterable[UserId]) -> None: ...

    async def look_back(self, user: User) -> None: ...

    def pages(self) -> int:
        return 0

    def release(self, users: Iterable[UserId]) -> None: ...

    def channels(self, me: User | None, peer_id: UserId, peer: User | None) -> tuple[UserId, ...]:
        return ()

    def entry(self, channels: tuple[UserId, ...], conv: Conversation, item: Item, payload: bytes) -> None: ...

    def ahead(self, conv: Conversation, first: int, ts: int, items: list[Item]) -> None: ...

    def receipt(self, conv: Conversation, side: int, me: User) -> None: ...

    def typing(self, conv: Conversation, side: int, payload: bytes) -> None: ...


class OwnCount:
    """This node's own count decides, at once. Implements Admission.

    `now`: seconds, monotonic.
    """

    decides_at_once: Final = True

    def __init__(self, rates: Rates, now: Callable[[], float]) -> None:
        self._rates, self._now = rates, now

    def windows(self, user: UserId) -> Windows:
        rates = self._rates
        return Windows(
            SlidingWindow(rates.messages, rates.per_s),
            Penalty(rates.strikes_max),
            SlidingWindow(rates.new_per_hour, NEW_PERIOD_S),
        )

    def put(self, window: SlidingWindow, then: Callable[[float], None]) -> bool:
        then(self._now())
        return True

    async def take(self, window: SlidingWindow) -> tuple[float, float]:
        now = self._now()
        return window.take(now), now

    async def idle(self) -> None: ...
