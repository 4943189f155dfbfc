"""Reads from Redis what other nodes say of the users kept: for a hello, after a loss, in rounds.

    look (hello, watch) ──┐                                 ┌─► Presence.resync_all ──► watchers
    a node is stale ──────┼─► subscribed? ─► index, hashes ─┤
    a round ──────────────┘    (pubsub)     (presence_keys) └─► a hash that fell back: read again

A read of some users is one script over all nodes (presence_keys.LOOK): it costs by the users and
where they are, not by the number of nodes. Nodes of the release before are not in the index, and
their hashes are read one after the other.

Before a user is read, the channel of the user's presence must be subscribed to (a hello that waits
too long for that has the user read twice). So a change is
either in the answer or arrives later. Redis pub/sub loses nothing on a connection that lives; a
connection that ended, or hears nothing, has everything read again (pubsub.py). What no cause
explains is found in rounds: with each beat `ROUND_USERS` of the users kept are read.

Rejected: numbers by user or by bucket of users, compared with each beat. They find a loss within a
beat whatever its cause, and cost a read of all that is kept with each beat.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from chatd.cluster.leases import BEATS, Leases
from chatd.cluster.presence_keys import CALL_S, PresenceKeys
from chatd.cluster.pubsub import PubSub
from chatd.cluster.redis.client import RedisUnavailable
from chatd.ids import UserId
from chatd.metrics import Metrics
from chatd.presence import Change, Presence

READ_USERS: Final = 1_000  # users in one read: some 0.5 ms of Redis
ROUND_USERS: Final = 100  # users read with each beat: 20,000 take 100 s
# A read for a hello waits this long for its subscriptions. Where they take longer, it goes first,
# and the users are read again afterwards.
HEARD_S: Final = 0.1
# The longest that a hello or watch waits for Redis; later presence is pushed. A contact on another
# node looks offline until then, so it is as long as a read may take before Redis counts as away.
LOOK_S: Final = CALL_S
LINGER_S: Final = 10.0  # a user who is not kept any more stays subscribed to for this long at least


class ReadListener(Protocol):
    """Gets what was read. Neither method may raise or block."""

    def announce(self, change: Change | None) -> None:
        """Push a change of presence to those who watch the user; None: nothing changed."""

    def devices_elsewhere(self, user: UserId) -> None:
        """Another node reported devices of a user who is kept here."""


class PresenceReader:
    """`run` is its task. `is_away`: Redis does not answer. `again`: all hashes must be read."""

    def __init__(
        self, keys: PresenceKeys, leases: Leases, pubsub: PubSub, presence: Presence, metrics: Metrics,
        *, now_ms: Callable[[], int], is_away: Callable[[], bool], again: Callable[[], None],
    ) -> None:  # fmt: skip
        self._keys, self._leases, self._pubsub, self._presence = keys, leases, pubsub, presence
        self._metrics, self._now_ms, self._is_away, self._again = metrics, now_ms, is_away, again
        self.listener: ReadListener
        self._silent = False  # a read for a hello failed, and no beat has succeeded since
        self._beaten = asyncio.Event()
        self._asked: set[UserId] = set()
        self._looking: asyncio.Task[None] | None = None
        self._answer: asyncio.Future[None] | None = None
        self._late: set[UserId] = set()  # read before their subscription was confirmed: to be read again
        self._round: list[UserId] = []  # users whom this round has not read yet
        self._released: set[UserId] = set()
        self._let_go_at = 0.0

    def beaten(self) -> None:
        """A beat succeeded: read what is stale, and go on with the round."""
        self._silent = False
        self._beaten.set()

    def let_go(self, now: float) -> None:
        """Unsubscribe from users who have not been kept for `LINGER_S`. Call it with each beat.

        A session that reconnects watches the same users again.
        """
        if now - self._let_go_at >= LINGER_S:
            self._let_go_at = now
            self._pubsub.unwatch([user for user in self._released if not self._presence.keeps(user)])
            self._released = self._presence.take_released()

    # ---- reads for hello and watch ---------------------------------------------------------------

    async def look(self, users: Iterable[UserId]) -> None:
        """Hear of users who are kept from now on, and read what other nodes say of them.

        Waits `LOOK_S` at most; what arrives later is pushed. Calls at the same time share one read.
        Does not wait while Redis does not answer: after the next beat that succeeds, all is read.
        """
        users = list(users)
        self._pubsub.watch(users)
        if not self._leases.nodes or self._silent or self._is_away():
            return
        self._asked.update(users)
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
        answer = self._answer
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        await asyncio.wait([answer], timeout=LOOK_S)

    async def _look(self) -> None:
        try:
            while self._answer is not None:
                users, self._asked = list(self._asked), set()
                answer, self._answer = self._answer, None
                try:
                    is_heard = await self._is_heard(users)
                    for at in range(0, len(users), READ_USERS):
                        await self._read_part(list(self._leases.nodes), users[at : at + READ_USERS])
                    if not is_heard:
                        self._late.update(users)
                        self._beaten.set()
                except (RedisUnavailable, TimeoutError):
                    self._silent = True
                    self._again()
                finally:
                    if not answer.done():
                        answer.set_result(None)
        finally:
            self._looking = None

    async def _is_heard(self, users: Sequence[UserId]) -> bool:
        """Wait `HEARD_S` at most until what is published of these users arrives here."""
        try:
            async with asyncio.timeout(HEARD_S):
                await self._pubsub.watched(users)
        except TimeoutError:
            return False
        return True

    # ---- after losses, and in rounds -------------------------------------------------------------

    async def run(self) -> None:
        """With each beat read nodes of which something was missed, and a part of the round.

        Never returns. Not a part of the beat, because it may take longer than a lease.
        """
        while True:
            await self._beaten.wait()
            self._beaten.clear()
            # After a failure nodes stay stale, and the next beat asks again
            with contextlib.suppress(RedisUnavailable, TimeoutError):
                await self._read_late()
                await self._read_stale()
                await self._read_round()
                # Some 1 sweep a lease over all nodes, however many they are
                if random.random() * BEATS * (len(self._leases.nodes) + 1) < 1:
                    await self._keys.sweep()

    async def _read_stale(self) -> None:
        """Read all users that are kept here, of the nodes that are stale."""
        stale = [(incarnation, node) for incarnation, node in self._leases.nodes.items() if node.stale]
        if not stale:
            return
        for _, node in stale:
            node.stale = False
        self._metrics.presence_reads += len(stale)
        try:
            await self._read([incarnation for incarnation, _ in stale], list(self._presence.kept_users()))
        except (RedisUnavailable, TimeoutError):
            for _, node in stale:
                node.stale = True
            raise

    async def _read_late(self) -> None:
        users, self._late = self._late, set()
        try:
            await self._read(list(self._leases.nodes), list(users))
        except (RedisUnavailable, TimeoutError):
            self._late |= users
            raise

    async def _read_round(self) -> None:
        if not self._round:
            self._round = list(self._presence.kept_users())
        users = self._round[-ROUND_USERS:]
        del self._round[-ROUND_USERS:]
        if users and (indexed := self._indexed(self._leases.nodes)):
            await self._read_index(indexed, users)

    # ---- one read; each raises RedisUnavailable or TimeoutError ----------------------------------

    def _indexed(self, incarnations: Iterable[str]) -> list[str]:
        """Those nodes that are in the index; they are read together."""
        nodes = self._leases.nodes
        return [one for one in incarnations if (node := nodes.get(one)) is not None and node.listing is not None]

    async def _read(self, incarnations: Sequence[str], users: Sequence[UserId]) -> None:
        """Read what these nodes say of the users, once what is published of them arrives here."""
        for at in range(0, len(users), READ_USERS):
            part = users[at : at + READ_USERS]
            async with asyncio.timeout(CALL_S):
                await self._pubsub.watched(part)
            await self._read_part(incarnations, part)

    async def _read_part(self, incarnations: Sequence[str], users: Sequence[UserId]) -> None:
        # Each time, because a read of a node that has died would bring it back
        if indexed := self._indexed(incarnations):
            await self._read_index(indexed, users)
        for incarnation in incarnations:
            if incarnation not in indexed and incarnation in self._leases.nodes:
                await self._read_hash(incarnation, users)

    async def _read_index(self, incarnations: Sequence[str], users: Sequence[UserId]) -> None:
        reads = {incarnation: self._presence.begin_read(incarnation) for incarnation in incarnations}
        least = {incarnation: self._published(incarnation) for incarnation in incarnations}
        answer = await self._keys.look(incarnations, users)
        for incarnation, n in zip(incarnations, answer.numbers, strict=True):
            if not self._is_usable(incarnation, n, least[incarnation]):
                del reads[incarnation]
        for change in self._presence.resync_all(users, answer.found, reads, self._now_ms()):
            self.listener.announce(change)
        self._devices_elsewhere(answer.found)

    async def _read_hash(self, incarnation: str, users: Sequence[UserId]) -> None:
        read, least = self._presence.begin_read(incarnation), self._published(incarnation)
        found = await self._keys.read(incarnation, users)
        if found is None or not self._is_usable(incarnation, found.n, least):
            return
        for change in self._presence.resync(incarnation, found.answer, read, self._now_ms()):
            self.listener.announce(change)
        self._devices_elsewhere(users)

    def _published(self, incarnation: str) -> int:
        """The last batch of a node that is known of here."""
        node = self._leases.nodes.get(incarnation)
        return 0 if node is None else node.n

    def _is_usable(self, incarnation: str, n: int | None, least: int) -> bool:
        """Whether a hash counts that has batches up to `n`; None: it is lost, or being written.

        `least`: what was known to be published when it was asked for. A batch that arrives before
        the answer may be newer than that. Where Redis fell back behind what the node has published,
        the node will see that, and list its users again.
        """
        node = self._leases.nodes.get(incarnation)
        if node is None or n is None:
            return False  # the last known state stays
        if n < least:
            node.stale = True
            return False
        return True

    def _devices_elsewhere(self, users: Iterable[UserId]) -> None:
        for user in users:
            if self._presence.elsewhere(user):
                self.listener.devices_elsewhere(user)
