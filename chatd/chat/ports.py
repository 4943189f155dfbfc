"""What the services need of other nodes, of the limits that all nodes share, and of each other:
protocols, and what stands for other nodes where there are none. Pure.

    OtherNodes   Relay (cluster, over Redis)   or  Alone      who else has a user; entries, receipts and typing for them
    Admission    SharedLimits (over Redis)     or  OwnCount   may this user send, or open a conversation, now?

Which of the two it is, the node decides once, when it is made. No service asks whether there are
other nodes, with two exceptions that are facts of the log and of time, told by the ports
themselves: `OtherNodes.share_log` and `Admission.decides_at_once`.

The others let the pipeline of sends (chat/send.py) know no I/O. Each has one implementation:

    EntryQueue         Lanes            ConversationMaker   NewConversations      SendCounts   Metrics
    CommittedEntries   Delivery         FirstSends          SendPipeline          SendLog      SendLines
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
    from chatd.protocol import Send

NEW_PERIOD_S: Final = 3_600.0  # of the limit of new conversations


class OtherNodes(Protocol):
    """The other nodes on this log.

    Nothing of it raises. `me` and `peer`: users as they are held here, None where they are not.
    """

    @property
    def share_log(self) -> bool:
        """They write to the log: what is in it may not have been delivered here yet."""

    async def arrive(self, user: UserId, watch: Iterable[UserId]) -> None:
        """A session of the user begins: return when what others publish for them comes here, and
        what is known of those they watch. Bounded.
        """

    async def look(self, users: Iterable[UserId]) -> None:
        """Return when it is known which of these are online elsewhere. Bounded."""

    async def look_back(self, user: User) -> None:
        """A session of a user who is elsewhere, too, is live now: look whether anything was missed
        before the other node knew of it.
        """

    def pages(self) -> int:
        """How often what others wrote has been read from the log so far."""

    def release(self, users: Iterable[UserId]) -> None:
        """These users are not held any more."""

    def channels(self, me: User | None, peer_id: UserId, peer: User | None) -> tuple[UserId, ...]:
        """Whose channels an entry of `me` to `peer_id` goes to."""

    def entry(self, channels: tuple[UserId, ...], conv: Conversation, item: Item, payload: bytes) -> None:
        """The conversation's head, just delivered here. `payload`: its JSON without the cid."""

    def receipt(self, conv: Conversation, side: int, me: User) -> None:
        """The cursors of one side, `me`, have just moved here."""

    def typing(self, conv: Conversation, side: int, payload: bytes) -> None:
        """One side types here."""


class Windows(NamedTuple):
    """The limits of a user: see `registry.User`."""

    window: SlidingWindow
    penalty: Penalty
    new_convs: SlidingWindow


class Rates(NamedTuple):
    """The settings of the limits of a user."""

    messages: int
    per_s: float
    strikes_max: int
    new_per_hour: int


class Admission(Protocol):
    """Who decides what a user's limits allow. Nothing of it raises."""

    @property
    def decides_at_once(self) -> bool:
        """`put` runs what it is given before it returns, and a window may be taken from without
        asking.
        """

    def windows(self, user: UserId) -> Windows:
        """A new user's limits."""

    def put(self, window: SlidingWindow, then: Callable[[float], None]) -> bool:
        """Run `then(arrived_at)` when it is known what the window grants; False: too many wait, and
        it never runs. In the order of the calls.
        """

    async def take(self, window: SlidingWindow) -> tuple[float, float]:
        """Take one: (wait in seconds, when it was taken), as of `SlidingWindow.take`."""

    async def idle(self) -> None:
        """Wait until nothing waits in `put`."""


# ---- of the pipeline of sends (send.py) ----------------------------------------------------------


class FirstSend(NamedTuple):
    """A send that waits for its conversation. `resent_early`: as `SendOrder.arrive` said."""

    session: Session
    user: User
    request: Send
    resent_early: bool


class FirstSends(Protocol):
    """Who goes on with sends that waited for their conversation: the pipeline. Neither raises."""

    def made(self, first: FirstSend, conv: Conversation) -> None:
        """It is there."""

    def not_made(self, first: FirstSend, error: Refused) -> None:
        """It cannot be made."""


class ConversationMaker(Protocol):
    """Makes the conversations of first messages: `NewConversations`."""

    @property
    def waiting(self) -> int:
        """Sends that wait, of all users."""

    def waits(self, user: UserId, to: UserId) -> bool:
        """Sends between these two wait: a later one must not overtake them."""

    def put(self, first: FirstSend, sends: FirstSends, now: float) -> Retryable | None:
        """Let it wait for its conversation; it comes back to `sends`, in order, never before this
        returns. Gives the refusal if it may not wait.
        """


class EntryQueue(Protocol):
    """The lanes of the log: `Lanes`."""

    def submit(self, item: Item) -> bool:
        """Queue an entry; False: its lane is full, and nothing was queued. Its outcome comes to
        `append_answer.Outcome`.
        """


class CommittedEntries(Protocol):
    """Brings what is in the log to the sessions: `Delivery`. `seq`, `ts`: of the entry, `ts` in ms
    since 1970.
    """

    def deliver(self, conv: Conversation, first: int, ts: int, items: list[Item], now: float) -> None:
        """New entries of one conversation, from seq `first` on."""

    def repeat(self, item: Item, seq: int, ts: int) -> None:
        """An item whose entry was in the log already."""

    def outcome_unknown(self, convs: set[ConvId], writers: set[Backend]) -> None:
        """Batches with an unknown outcome wrote to these: look how far they got."""


class SendCounts(Protocol):
    """The counters that the pipeline moves: `Metrics`."""

    sends: int
    sends_err: int
    limit_hits: int
    frames_throttled: int

    def error(self, code: str) -> None:
        """A request was answered with this error."""


class SendLog(Protocol):
    """What the pipeline says in the log: `SendLines`."""

    def limit_hit(self, item: Item, now: float) -> None:
        """An entry is over the rate."""

    def refused(self, item: Item, error: Refused) -> None:
        """An item that was in a lane is answered with an error."""

    def bug(self, user: UserId, error: Exception) -> None:
        """An exception that must not be: one of ours."""


class SessionLog(Protocol):
    """What the log says of sessions: `net.access_log.AccessLog`."""

    def opened(self, session: Session) -> None:
        """Its hello was answered with a welcome."""

    def hello_refused(self, session: Session, device: str, error: Refused) -> None:
        """`device`: as the hello named it."""

    def refresh_refused(self, session: Session, error: Refused) -> None:
        """A new token is not taken."""


# ---- of a node alone -----------------------------------------------------------------------------


class Alone:
    """There are no other nodes. Implements OtherNodes."""

    share_log: Final = False

    async def arrive(self, user: UserId, watch: Iterable[UserId]) -> None: ...

    async def look(self, users: Iterable[UserId]) -> None: ...

    async def look_back(self, user: User) -> None: ...

    def pages(self) -> int:
        return 0

    def release(self, users: Iterable[UserId]) -> None: ...

    def channels(self, me: User | None, peer_id: UserId, peer: User | None) -> tuple[UserId, ...]:
        return ()

    def entry(self, channels: tuple[UserId, ...], conv: Conversation, item: Item, payload: bytes) -> None: ...

    def receipt(self, conv: Conversation, side: int, me: User) -> None: ...

    def typing(self, conv: Conversation, side: int, payload: bytes) -> None: ...


class OwnCount:
    """This node's own count decides, and nothing waits.

    Implements Admission. `now`: seconds, monotonic.
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
