"""What the services need of other nodes, and of the limits that all nodes share: protocols, and
what stands for them where a node is alone. Pure.

    OtherNodes   Relay (cluster, over Redis)   or  Alone      who else has a user; entries, receipts and typing for them
    Admission    Quota (cluster, over Redis)   or  OwnCount   may this user send, or open a conversation, now?

Which of the two it is, the node decides once, when it is made. No service asks whether there are
other nodes, with two exceptions that are facts of the log and of time, told by the ports
themselves: `OtherNodes.share_log` and `Admission.decides_at_once`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from chatd.core.rate_limit import Penalty, SlidingWindow

if TYPE_CHECKING:
    from chatd.core.batch import Item
    from chatd.core.conversation import Conversation
    from chatd.core.session import User
    from chatd.ids import UserId

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
