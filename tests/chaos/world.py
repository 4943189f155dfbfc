"""A world of one seed: nodes in this event loop over a real PostgreSQL and Redis, devices that do anything, faults in between, and then quiet.

    World.run()      start ─► chaos for `chaos_s` ─► the last fault is over ─► quiet ─► findings

All of it is drawn from the seed; how the loop and the servers interleave it is not, so a seed is replayed as its plan, not to the last turn.
`log` is the plan as it was carried out, and is shown with the findings.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Final

import psycopg
from pydantic import SecretStr

from chatd.auth import Keys, issue
from chatd.config import Settings
from chatd.ids import UserId
from chatd.server import Node
from tests import maps
from tests.chaos import truth
from tests.chaos.device import Device, Life
from tests.chaos.injector import Injector, Odds
from tests.chaos.servers import Place, Servers
from tests.faults import checker
from tests.faults.crowd import read_log
from tests.faults.tcp_proxy import TcpProxy

LEASE_S: Final = 1.0
QUIET_S_MAX: Final = 12.0
POLL_S: Final = 0.02
DAY_S: Final = 86_400
DEVICES_MAX: Final = 4
ROOM: Final[dict[str, Any]] = {
    "rate_messages": 5_000, "frames_per_s": 50_000, "frames_burst": 50_000, "new_conversations_per_hour": 5_000, "presence_grace_ms": 150,
    "lease_ms": int(LEASE_S * 1000), "lane_deadline_ms": 400, "cursor_flush_ms": 100, "devices_max": DEVICES_MAX, "admin_port": -1,
    "lanes": 2, "pool_max": 3, "drain_ms": 3_000, "partitions_ahead": 1,
}  # fmt: skip


class World:
    """One seed's."""

    def __init__(
        self, seed: int, nodes: int, place: Place, *, chaos_s: float = 1.2, quiet_s: float = QUIET_S_MAX, odds: Odds | None = None,
        faults: bool = True,
    ) -> None:  # fmt: skip
        self.seed, self.size, self.place, self.chaos_s, self.quiet_s = seed, nodes, place, chaos_s, quiet_s
        self.has_faults = faults
        self.rng = random.Random(f"{seed}/{nodes}")
        self.injector = Injector(random.Random(self.rng.getrandbits(64)), odds or self._odds())
        self.nodes: list[Node] = []
        self.devices: list[Device] = []
        self.lives: list[Life] = []
        self.log: list[str] = []
        self.last_fault_at = 0.0
        self.node_died = False
        self.presence_s = 0.0
        self.proxy = TcpProxy(place.redis[0].port)
        self.servers = Servers(place, self.proxy, self.injector, random.Random(self.rng.getrandbits(64)), self.note)
        self._keys = Keys.development(place.folder)
        self._acting: list[asyncio.Task[None]] = []
        self._running: list[asyncio.Task[None]] = []
        self._down: set[int] = set()  # nodes that nobody is to dial
        self._names = [f"{name}{seed}" for name in "abcd"]

    def _odds(self) -> Odds:
        """Some seeds only delay, some fail now and then, some fail often."""
        kind = self.rng.choice(("delays", "some", "some", "many"))
        fail = {"delays": 0.0, "some": 0.02, "many": 0.12}[kind]
        return Odds(pause=self.rng.choice((0.1, 0.4, 0.8)), fail=fail, lose=fail, hang=fail / 10)

    def note(self, what: str) -> None:
        self.log.append(f"{asyncio.get_running_loop().time():.3f} {what}")

    # ---- nodes ---------------------------------------------------------------------------------------------------------------------

    async def start_node(self) -> Node:
        s = {"database_url": SecretStr(self.place.conninfo), "data_dir": self.place.folder, "port": 0, **ROOM}
        if self.size > 1:
            s |= {"redis_url": SecretStr(f"redis://127.0.0.1:{self.proxy.port}"), "redis_prefix": "chaos", "node_name": f"n{len(self.nodes)}"}
        node = Node(Settings(**s))
        self.nodes.append(node)
        await node.start()
        return node

    def where(self) -> tuple[int, str]:
        up = [n for n in range(len(self.nodes)) if n not in self._down and self.nodes[n].port]
        n = self.rng.choice(up)
        return n, f"ws://127.0.0.1:{self.nodes[n].port}/ws"

    @property
    def living(self) -> list[Node]:
        return [node for n, node in enumerate(self.nodes) if n not in self._down]

    # ---- devices -------------------------------------------------------------------------------------------------------------------

    def add(self, user: str, device: str) -> Device:
        token = issue(self._keys, UserId(user), 60 * DAY_S, time.time() - 7 * DAY_S, None, None)  # good whatever the clock is set to
        one = Device(user, device, token, random.Random(self.rng.getrandbits(64)), self.where, self.lives)
        one.watch, one.is_alone = self._some(), self.size == 1
        self.devices.append(one)
        self._running.append(asyncio.create_task(one.run()))
        self._acting.append(asyncio.create_task(self._acts(one)))
        return one

    def _some(self) -> list[str]:
        return [name for name in self._names if self.rng.random() < 0.7]

    async def _acts(self, device: Device) -> None:
        rng = random.Random(self.rng.getrandbits(64))
        await asyncio.sleep(rng.uniform(0, 0.1))
        device.wanted.set()
        pause_s = rng.choice((0.01, 0.03))
        while True:
            await asyncio.sleep(rng.uniform(0, 2 * pause_s))
            await self._act(device, rng)

    async def _act(self, device: Device, rng: random.Random) -> None:
        peer = rng.choice(self._names)
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
        if device.unsent > 40:
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

    # ---- faults --------------------------------------------------------------------------------------------------------------------

    async def _faults(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        kinds = self.servers.of_postgres()
        if self.size > 1:
            kinds += [*self.servers.of_redis(), self._replace_node]
        while loop.time() < until:
            await asyncio.sleep(self.rng.uniform(0.02, 0.35))
            if loop.time() < until and self.has_faults:
                await self.rng.choice(kinds)()

    async def _replace_node(self) -> None:
        if len(self.living) < self.size:
            return
        n = self.rng.choice([n for n in range(len(self.nodes)) if n not in self._down])
        node, crash = self.nodes[n], self.rng.random() < 0.5
        self.note(f"node {n} {'crashes' if crash else 'drains'}")
        self._down.add(n)
        if crash:
            self.node_died = True
            await crash_node(node)
        else:
            await node.drain()
            await node.stop()
        was_on, self.injector.is_on = self.injector.is_on, False
        await self.start_node()
        self.injector.is_on = was_on
        self.note(f"node {len(self.nodes) - 1} is there")

    # ---- a run -----------------------------------------------------------------------------------------------------------------------

    async def run(self) -> list[str]:
        """Chaos, then quiet; gives what is wrong."""
        loop = asyncio.get_running_loop()
        await self.proxy.start()
        try:
            for _ in range(self.size):
                await self.start_node()
            for name in self._names:
                for n in range(self.rng.choice((1, 2, 3))):
                    self.add(name, f"{name}-{n}")
            if self.rng.random() < 0.3:
                for n in range(3, DEVICES_MAX + 3):  # too many
                    self.add(self._names[0], f"{self._names[0]}-{n}")
            if self.rng.random() < 0.5:
                self.add(self._names[1], f"{self._names[1]}-0")  # a rival: the same device
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
        self.note("the last fault is over")
        findings = await self._settled()
        return findings + [f"{life}" for life in truth.closes(self.lives, DEVICES_MAX, LEASE_S)]

    def _over_limit(self, device: Device, taken: set[tuple[str, str]]) -> bool:
        return sum(user == device.history.user for user, _ in taken) >= DEVICES_MAX

    async def _settled(self) -> list[str]:
        """Poll until nothing is wrong, or time is up; then what is wrong."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.quiet_s
        wrong = await self._until(self._delivered, deadline)
        presence = await self._until(self._presence, max(deadline, loop.time() + min(LEASE_S + 1, self.quiet_s)))
        if presence:
            self.log += truth.seats(self.living)
        self.presence_s = loop.time() - self.last_fault_at
        wrong += presence
        wrong += await self._until(self._receipts, loop.time() + min(5, self.quiet_s))
        wrong += await self._until(self._listed, loop.time() + min(5, self.quiet_s))
        wrong += await self._until(self._maps, loop.time() + min(5, self.quiet_s))
        return wrong + self._checked()

    @staticmethod
    async def _until(wrong: Callable[[], list[str]], deadline: float) -> list[str]:
        loop = asyncio.get_running_loop()
        while found := wrong():
            if loop.time() > deadline:
                return found
            await asyncio.sleep(POLL_S)
        return []

    def _logs(self) -> tuple[dict[str, list[checker.Entry]], dict[str, set[str]]]:
        log, who = read_log(self.place.conninfo)
        who = {c: users for c, users in who.items() if users <= set(self._names)}
        return {c: log[c] for c in who}, who

    def _delivered(self) -> list[str]:
        wrong = [f"{d.history.device} is not connected" for d in self.devices if d.wanted.is_set() and not d.is_up]
        up = [d for d in self.devices if d.is_up]
        wrong += [f"{d.history.device} has {d.unsent} unsent: {next(q[0] for q in d.outbox.values() if q)}" for d in up if d.unsent]
        wrong += [f"{d.history.device} has no answer to {d.unanswered}" for d in up if d.unanswered]
        if wrong:
            return wrong
        log, who = self._logs()
        for d in up:
            wrong += [
                f"{d.history.device} has {c} up to {d.have.get(c)}, the log goes to {len(log[c])}"
                for c, users in who.items() if d.history.user in users and d.have.get(c, 0) < len(log[c])
            ]  # fmt: skip
        return wrong + list(truth.haunted(self.lives))

    def _presence(self) -> list[str]:
        return list(truth.presence(self.devices, self.lives, *self._logs()))

    def _stored(self, who: dict[str, set[str]]) -> truth.Cursors:
        with psycopg.connect(self.place.conninfo) as conn:
            return {at: cursor for at, cursor in truth.read_cursors(conn).items() if at[0] in who}

    def _receipts(self) -> list[str]:
        _, who = self._logs()
        return list(truth.cursors(self.devices, self._stored(who), who, exact=not self.node_died))

    def _listed(self) -> list[str]:
        if unanswered := [f"{d.history.device} has no answer to {d.unanswered}" for d in self.devices if d.is_up and d.unanswered]:
            return unanswered
        log, who = self._logs()
        wrong = list(truth.lists(self.devices, log, who, self._stored(who)))
        if wrong:  # the first question, or what was on its way between nodes when the last one was asked
            for device in self.devices:
                device.ask("conversations", limit=100)
        return wrong

    def _maps(self) -> list[str]:
        log, _ = read_log(self.place.conninfo)
        heads = {c: len(entries) for c, entries in log.items()}
        found = ((node, (*truth.failed(node), *maps.wrong(node), *truth.maps(node, heads))) for node in self.living)
        return [f"node {self.nodes.index(node)}: {one}" for node, wrong in found for one in wrong]

    def _checked(self) -> list[str]:
        log, who = self._logs()
        findings = checker.check([d.history for d in self.devices], log)
        for device in self.devices:
            if device.is_up:
                findings += checker.missing(device.history, {c: log[c] for c, users in who.items() if device.history.user in users})
        return [f"{f.what}: {f.sentence}" for f in findings] + [f"{d.history.device}: {fault}" for d in self.devices for fault in d.faults]

    async def _end(self) -> None:
        for task in [*self._acting, *self._running]:
            task.cancel()
        await asyncio.gather(*self._acting, *self._running, return_exceptions=True)
        for n, node in enumerate(self.nodes):
            if n not in self._down:
                await node.stop()
        left = [task for node in self.nodes for task in node._tasks]  # made by a timer since
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.proxy.stop()


async def crash_node(node: Node) -> None:
    """As by kill -9, for all others: nothing is written, nobody is told, connections are cut."""

    async def nothing(*_: object) -> None:
        """What a process that is killed does."""

    if node.cluster is not None:
        node.cluster.mirror.leave = nothing  # type: ignore[method-assign, assignment]
    node.store.flush = nothing  # type: ignore[method-assign]
    await node.stop()

