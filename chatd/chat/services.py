"""Holds the parts of a node that its services share; `server.py` makes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from chatd.chat.delivery import Delivery
from chatd.chat.keys_in_force import KeysInForce
from chatd.chat.ports import Admission, OtherNodes, SessionLog
from chatd.chat.presence_push import PresencePush
from chatd.clock import Clock
from chatd.config import Settings
from chatd.core.conversations import Registry
from chatd.core.hello_rates import Addresses
from chatd.core.session import User
from chatd.core.steady_time import Steady
from chatd.ids import UserId
from chatd.loop.tasks import Tasks
from chatd.metrics import Metrics
from chatd.postgres.fair_queue import Turns
from chatd.presence import Presence
from chatd.store import HELLOS_WAITING_MAX, Store

# Hellos of which a page of rows is in memory (`store.LIST_ALL_MAX`; among other nodes all of them),
# until the last page of the welcome is queued: about 0.6 KB a listed conversation.
LISTINGS_MAX: Final = 10_000
# Of one user: a device that does not read its welcome must not keep the others out.
USER_LISTINGS_MAX: Final = 2


@dataclass(slots=True)
class Services:
    """The parts of a node that its services share."""

    settings: Settings
    store: Store
    presence: Presence
    presence_push: PresencePush
    others: OtherNodes
    admission: Admission
    registry: Registry
    metrics: Metrics
    clock: Clock
    steady: Steady
    keys_in_force: KeysInForce
    tasks: Tasks
    delivery: Delivery
    session_log: SessionLog
    # Users with too many devices, until all nodes have said how active theirs are
    settling: set[UserId] = field(default_factory=set)
    listings: Turns = field(default_factory=lambda: Turns(LISTINGS_MAX, USER_LISTINGS_MAX, HELLOS_WAITING_MAX))
    addresses: Addresses = field(init=False)

    def __post_init__(self) -> None:
        self.addresses = Addresses(self.settings.connections_per_address_max)

    @property
    def refuse_unknown(self) -> bool:
        return self.settings.unknown_recipients == "refuse"

    def user(self, id: UserId) -> User:
        """The user in memory; a new one is added if they are not held."""
        user = self.registry.users.get(id)
        if user is None:
            user = User(id, *self.admission.windows(id))
            self.registry.add_user(user, self.clock.now())
        return user
