"""A world of one seed: nodes in this event loop over a real PostgreSQL and Redis, devices that do
anything, faults in between, and then quiet.

    World.run()      start ─► chaos for `chaos_s` ─► the last fault is over ─► quiet ─► findings

All of it is drawn from the seed; how the loop and the servers interleave it is not, so a seed is
replayed as its plan, not to the last turn. `log` is the plan as it was carried out, and is shown
with the findings.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pydantic import SecretStr

from chatd.chat.auth import KeySet, issue
from chatd.config import Settings
from chatd.errors import Unavailable
from chatd.ids import UserId
from chatd.server import Node
from tests.chaos import limits
from tests.chaos.closes import Closes
from tests.chaos.convergence import Convergence
from tests.chaos.device import Device, Life
from tests.chaos.homes import Apart, Home
from tests.chaos.injector import Injector, Odds
from tests.chaos.servers import Place, Servers
from tests.chaos.verdict import Verdict
from tests.forgetful import forgetful
from tests.proxy import Proxy
from tests.sweeping import sweeping

LEASE_S: Final = 1.0
QUIET_S_MAX: Final = 12.0
START_TRIES: Final = 5
DAY_S: Final = 86_400
DEVICES_MAX: Final = 4
ROOM: Final[dict[str, Any]] = {
    "rate_messages": 5_000,
    "frames_per_s": 50_000,
    "frames_burst": 50_000,
    "new_conversations_per_hour": 5_000,
    "presence_grace_ms": 150,
    "lease_ms": int(LEASE_S * 1000),
    "lane_deadline_ms": 400,
    "cursor_flush_ms": 100,
    "devices_max": DEVICES_MAX,
    "admin_port": -1,
    "lanes": 2,
    "pool_max": 3,
    "drain_ms": 3_000,
    "partitions_ahead": 1,
}


class World:
    """One seed's."""

    def __init__(
        self,
        seed: int,
        nodes: int,
        place: Place,
        *,
        chaos_s: float = 1.2,
        quiet_s: float = QUIET_S_MAX,
        odds: Odds | None = None,
        only: Sequence[str] | None = None,
        is_patient: bool = False,
    ) -> None:
        """`only`: of the faults these, by name.

        `is_patient`: watch presence for as long as it may change, also when it is right before.
        """
        self.seed, self.size, self.place, self.chaos_s, self.quiet_s = seed, nodes, place, chaos_s, quiet_s
        self.only, self.is_patient, self.devices_max = only, is_patient, DEVICES_MAX
        self.rng = random.Random(f"{seed}/{nodes}")
        self.injector = Injector(random.Random(self.rng.getrandbits(64)), odds or self._odds())
        self.nodes: list[Node] = []
        self.devices: list[Device] = []
        self.lives: list[Life] = []
        self.closes = Closes(LEASE_S)
        self.log: list[str] = []
        self.logs: Sequence[Mapping[str, Any]] = ()  # what the nodes have logged
        self.left: list[str] = []  # tasks of nodes apart
        self.last_fault_at = 0.0
        self.node_died = False
        self.convergence = Convergence(math.inf)
        self.outages = limits.Outages()
        self.homes: list[Home] = []  # of `nodes`
        self._lived: list[tuple[float, float]] = []  # from when to when each of `nodes` was there
        self._stay_until = 0.0  # a node that has drained keeps its users for so long before its lease begins to lapse
        self.proxy = Proxy(place.redis[0].port)
        self.servers = Servers(
            place, self.proxy, self.injector, random.Random(self.rng.getrandbits(64)), self.note, self.outages
        )
        self.is_tight = nodes > 1 and seed % 3 == 1  # users come to their limits
        self.has_apart = nodes > 1 and seed % 2 == 0  # a node that can be held up
        self._keys = KeySet.development(place.folder)
        self._acting: list[asyncio.Task[None]] = []
        self._running: list[asyncio.Task[None]] = []
        self.down: set[int] = set()  # nodes that nobody is to dial
        self.names = [f"{name}{seed}" for name in "abcd"]

    def _odds(self) -> Odds:
        """Some seeds only delay, some fail now and then, some fail often."""
        kind = self.rng.choice(("delays", "some", "some", "many"))
        fail = {"delays": 0.0, "some": 0.02, "many": 0.12}[kind]
        return Odds(pause=self.rng.choice((0.1, 0.4, 0.8)), fail=fail, lose=fail, hang=fail / 10)

    def note(self, what: str) -> None:
        self.log.append(f"{asyncio.get_running_loop().time():.3f} {what}")

    # ---- nodes -----------------------------------------------------------------------------------

    async def start_node(self, home: Home | None = None) -> None:
        s = {"database_url": SecretStr(self.place.conninfo), "data_dir": self.place.folder, "port": 0, **ROOM}
        if self.is_tight:
            s |= limits.ROOM
        if self.size > 1:
            s |= {
                "redis_url": SecretStr(f"redis://127.0.0.1:{self.proxy.port}"),
                "redis_prefix": "chaos",
                "node_name": f"n{len(self.nodes)}",
            }
        home = home or Home()
        node = await home.run(_started(Settings(**s)))
        if self.size == 1:  # a node among others holds all conversations
            forgetful(node, self.seed)
            if self.seed % 2:
                sweeping(node.store)
        self.nodes.append(node)
        self.homes.append(home)
        self._lived.append((asyncio.get_running_loop().time(), math.inf))

    def nodes_between(self, since: float, until: float) -> int:
        return sum(began < until and ended > since for began, ended in self._lived)

    def where(self) -> tuple[int, str]:
        up = [n for n in range(len(self.nodes)) if n not in self.down and self.nodes[n].port]
        n = self.rng.choice(up)
        return n, f"ws://127.0.0.1:{self.nodes[n].port}/ws"

    @property
    def living(self) -> list[Node]:
        return [node for n, node in enumerate(self.nodes) if n not in self.down]

    # ---- devices ---------------------------------------------------------------------------------

    def add(self, user: str, device: str) -> Device:
        one = Device(user, device, self.token(user), random.Random(self.rng.getrandbits(64)), self.where, self.lives)
        one.watch, one.is_alone = self._some(), self.size == 1
        self.devices.append(one)
        self._running.append(asyncio.create_task(one.run()))
        self._acting.append(asyncio.create_task(self._acts(one)))
        return one

    def _some(self) -> list[str]:
        return [name for name in self.names if self.rng.random() < 0.7]

    async def _acts(self, device: Device) -> None:
        rng = random.Random(self.rng.getrandbits(64))
        await asyncio.sleep(rng.uniform(0, 0.1))
        device.wanted.set()
        pause_s = rng.choice((0.01, 0.03))
        while True:
            await asyncio.sleep(rng.uniform(0, 2 * pause_s))
            await self._act(device, rng)

    async def _act(self, device: Device, rng: random.Random) -> None:
        peer = rng.choice(self.names)
        known = [c for c in device.have if device.have[c]]
        what = rng.random()
        if what < 0.40:
            self._post(device, peer, rng)
        elif what < 0.58 and known:
            device.move(rng.choice(("ack", "read", "read")), rng.choice(known))
        elif what < 0.66 and known:
            device.ask("typing", c=rng.choice(known))
        elif what < 0.74 and known:
            at = {rng.choice(("before", "after")): rng.randint(1, 10)} if rng.random() < 0.7 else {}
            device.ask("history", c=rng.choice(known), limit=rng.randint(1, 20), **at)
        elif what < 0.79:
            device.ask("conversations", limit=rng.randint(1, 5))
        elif what < 0.84:
            device.look_at(self._some())
        elif what < 0.88:
            device.away = not device.away
            device.ask("presence", state="away" if device.away else "online")
        elif what < 0.91 and (sent := device.acked_send()) is not None:
            device.ask("send", to=sent[0], cid=sent[1], body="again", retry=True)
        else:
            await self._comes_and_goes(device, rng)

    def _post(self, device: Device, peer: str, rng: random.Random) -> None:
        if device.unsent > (limits.MESSAGES if self.is_tight else 40):
            return
        mine = device.mine.get(peer, [])
        what = rng.random()
        if mine and what < 0.2:
            device.post(peer, "edit", f"edited {rng.random()}", rng.choice(mine))
        elif mine and what < 0.27:
            ref = rng.choice(mine)
            mine.remove(ref)
            device.post(peer, "delete", ref=ref)
        else:
            for _ in range(rng.choice((1, 1, 1, 2, 5))):
                device.post(peer, "message", f"{device.history.user} {rng.random()}")

    async def _comes_and_goes(self, device: Device, rng: random.Random) -> None:
        if not device.wanted.is_set():
            device.wanted.set()
        elif (what := rng.random()) < 0.3:
            device.drop()
        elif what < 0.6 and device.is_up:
            device.hop()
        elif what < 0.75:
            await device.leave()

    # ---- faults ----------------------------------------------------------------------------------

    async def _faults(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        kinds = self.servers.of_postgres()
        if self.size > 1:
            kinds += [*self.servers.of_redis(), self._replace_node, *[self._hold_up_node] * self.has_apart]
        if self.only is not None:
            kinds = [kind for kind in kinds if kind.__name__.strip("_") in self.only]
        while loop.time() < until:
            await asyncio.sleep(self.rng.uniform(0.02, 0.35))
            if loop.time() < until and kinds:
                await self.rng.choice(kinds)()

    async def _replace_node(self) -> None:
        if len(self.living) < self.size:
            return
        n = self.rng.choice([n for n in range(len(self.nodes)) if n not in self.down])
        node, crash = self.nodes[n], self.rng.random() < 0.5
        self.note(f"node {n} {'crashes' if crash else 'drains'}")
        self.down.add(n)
        if crash:
            self.node_died = True
            await self.homes[n].run(crash_node(node))
        else:
            await self.homes[n].run(node.drain())
            await self.homes[n].run(node.stop())
            self._stay_until = asyncio.get_running_loop().time() + max(0.0, node._drain_grace_s - LEASE_S)
        self._lived[n] = (self._lived[n][0], asyncio.get_running_loop().time())
        was_on, self.injector.is_on = self.injector.is_on, False
        await self.start_node()
        self.injector.is_on = was_on
        self.note(f"node {len(self.nodes) - 1} is there")

    async def _hold_up_node(self) -> None:
        """As SIGSTOP and SIGCONT do."""
        for n, home in enumerate(self.homes):
            if isinstance(home, Apart) and n not in self.down:
                held_s = self.rng.choice((0.2, LEASE_S + 0.4, 2 * LEASE_S + 0.4))  # longer than its hash lives
                self.note(f"node {n} is held up, for {held_s} s")
                await home.hold_up(held_s)
                self.note(f"node {n} goes on")

    # ---- a run -----------------------------------------------------------------------------------

    async def run(self) -> list[str]:
        """Chaos, then quiet; gives what is wrong."""
        loop = asyncio.get_running_loop()
        await self.proxy.start()
        try:
            for n in range(self.size):
                await self.start_node(Apart() if n == 1 and self.has_apart else None)
            for name in self.names:
                for n in range(self.rng.choice((1, 2, 3))):
                    self.add(name, f"{name}-{n}")
            if self.rng.random() < 0.3:
                for n in range(3, DEVICES_MAX + 3):  # too many
                    self.add(self.names[0], f"{self.names[0]}-{n}")
            if self.rng.random() < 0.5:
                self.add(self.names[1], f"{self.names[1]}-0")  # a rival: the same device
            self.injector.is_on = True
            await self._faults(loop.time() + self.chaos_s)
            return await self._quiet()
        finally:
            self.injector.is_on = False
            await self._end()

    async def _quiet(self) -> list[str]:
        self.injector.is_on = False
        self.proxy.heal()
        for task in self._acting:
            task.cancel()
        await asyncio.gather(*self._acting, return_exceptions=True)
        taken: set[tuple[str, str]] = set()
        for device in self.devices:
            place = (device.history.user, device.history.device)
            if place in taken or self._over_limit(device, taken):
                await device.leave()
            else:
                taken.add(place)
                device.wanted.set()
        self.last_fault_at = asyncio.get_running_loop().time()
        self.convergence = Convergence(LEASE_S + 1 + max(0.0, self._stay_until - self.last_fault_at))
        self.note("the last fault is over")
        return await Verdict(self).settled() + self.closes.wrong

    def _over_limit(self, device: Device, taken: set[tuple[str, str]]) -> bool:
        return sum(user == device.history.user for user, _ in taken) >= DEVICES_MAX

    def token(self, user: str) -> str:
        # Good whatever the clock is set to
        return issue(self._keys, UserId(user), 60 * DAY_S, time.time() - 7 * DAY_S, None, None)

    async def _end(self) -> None:
        for task in [*self._acting, *self._running]:
            task.cancel()
        await asyncio.gather(*self._acting, *self._running, return_exceptions=True)
        for n, (node, home) in enumerate(zip(self.nodes, self.homes, strict=True)):
            if n not in self.down:
                await home.run(node.stop())
            await home.run(_cancelled(node.tasks.spawned))
            self.left += await home.end()
        await self.proxy.stop()


async def _started(settings: Settings) -> Node:
    """A node of the loop that this runs in.

    Again where it did not start: the waits are short, and the machine may be busy.
    """
    for tries in range(START_TRIES, 0, -1):
        node = Node(settings)
        try:
            await node.start()
        except Unavailable:
            await node.stop()
            if tries == 1:
                raise
        else:
            return node
    raise AssertionError


async def _cancelled(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Those that a timer made since the node has stopped."""
    left = [*tasks]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def crash_node(node: Node) -> None:
    """As by kill -9, for all others: nothing is written, nobody is told, connections are cut."""

    async def nothing(*_: object) -> None:
        """What a process that is killed does."""

    if node.cluster is not None:
        node.cluster.presence_sync.leave = nothing  # type: ignore[method-assign, assignment]
    node.store.state_flush.flush = nothing  # type: ignore[method-assign]
    await node.stop()
