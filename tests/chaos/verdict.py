"""What is judged once the last fault is over: that all comes right in time, and then that nothing
is wrong (truth.py, checker.py, limits.py).

    findings = await Verdict(world).settled()       sentences; none is right
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import psycopg

from tests import maps
from tests.chaos import limits, truth
from tests.faults import checker
from tests.faults.crowd import read_log
from tests.until import Late, until

if TYPE_CHECKING:
    from tests.chaos.world import World

POLL_S: Final = 0.02
READ_SHARE: Final = 8  # a reading is good for so many times as long as it took
# Logged where Redis had no answer in time
UNANSWERED: Final = frozenset(("lease.late", "presence.late", "publish.failed", "redis.away"))

Logs: TypeAlias = tuple[dict[str, list[checker.Entry]], dict[str, set[str]]]


class Verdict:
    """On a world that is quiet."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._read: Logs | None = None
        self._read_at = self._reading_s = 0.0

    async def settled(self) -> list[str]:
        """Poll until nothing is wrong, or time is up; then what is wrong."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._world.quiet_s
        wrong = await self._until(self._arrived, deadline)
        converges, patient = self._world.convergence, self._world.is_patient
        with contextlib.suppress(Late):
            await until(
                lambda: converges.late or not (self._seen() or (patient and not converges.is_over)),
                within_s=deadline - loop.time(),
                pause_s=POLL_S,
            )
        self._forgets()
        if presence := self._world.convergence.late or self._seen():
            for n, home in enumerate(self._world.homes):
                if n not in self._world.down:
                    self._world.log += home.look(partial(self._seats, n))
        wrong += presence
        wrong += await self._until(self._receipts, loop.time() + min(5, self._world.quiet_s))
        wrong += await self._until(self._listed, loop.time() + min(5, self._world.quiet_s))
        wrong += await self._until(self._maps, loop.time() + min(5, self._world.quiet_s))
        if self._world.is_tight:
            wrong += await self._limits()
        self._forgets()
        return wrong + ([] if presence else self._seen()) + self._checked()

    def _seats(self, n: int) -> list[str]:
        return [*truth.seats([self._world.nodes[n]])]

    async def _limits(self) -> list[str]:
        world = self._world
        wrong = [
            one
            for user, acked in limits.spans(world.devices).items()
            for one in limits.over(
                user, acked, limits.MESSAGES, limits.PER_MS / 1000, world.outages, world.nodes_between
            )
        ]

        def away() -> list[str]:
            alone = any(node.cluster and node.cluster.shared_limits.open for node in world.living)
            return ["for good: a node still counts alone"] * alone

        wrong += await self._until(away, asyncio.get_running_loop().time() + min(5, world.quiet_s))
        urls = [f"ws://127.0.0.1:{node.port}/ws" for node in world.living]
        names = (f"much{world.seed}", f"opens{world.seed}")
        rngs = [random.Random(world.rng.getrandbits(64)) for _ in range(2)]
        probes = await asyncio.gather(
            limits.probe(urls, names, world.token, rngs[0], world.outages),
            limits.crowd(urls, f"crowd{world.seed}", world.token(f"crowd{world.seed}"), rngs[1], world.devices_max),
        )  # fmt: skip
        return [*wrong, *(one for found in probes for one in found)]

    async def _until(self, wrong: Callable[[], list[str]], deadline: float) -> list[str]:
        """Until nothing is wrong, also by a log that is read then; or time is up."""
        found: list[str] = []

        def is_right() -> bool:
            nonlocal found
            found = wrong() or (self._forgets() and wrong()) or []
            return not found

        with contextlib.suppress(Late):
            await until(is_right, within_s=deadline - asyncio.get_running_loop().time(), pause_s=POLL_S)
        return found

    def _forgets(self) -> bool:
        self._read = None
        return True

    def _logs(self) -> Logs:
        """The log.

        It is read now and then only: reading holds up the nodes, which are in this loop, too.
        """
        if self._read is None or time.monotonic() > self._read_at + READ_SHARE * self._reading_s:
            began = time.monotonic()
            self._read = self._read_logs()
            self._read_at, self._reading_s = time.monotonic(), time.monotonic() - began
        return self._read

    def _read_logs(self) -> Logs:
        log, who = read_log(self._world.place.conninfo)
        who = {c: users for c, users in who.items() if users <= set(self._world.names)}
        return {c: log[c] for c in who}, who

    def _delivered(self) -> list[str]:
        wrong = [
            f"{d.history.device} is not connected" for d in self._world.devices if d.wanted.is_set() and not d.is_up
        ]
        up = [d for d in self._world.devices if d.is_up]
        wrong += [
            f"{d.history.device} has {d.unsent} unsent: {next(q[0] for q in d.outbox.values() if q)}"
            for d in up
            if d.unsent
        ]
        wrong += [f"{d.history.device} has no answer to {d.unanswered}" for d in up if d.unanswered]
        if wrong:
            return wrong
        log, who = self._logs()
        for d in up:
            wrong += [
                f"{d.history.device} has {c} up to {d.have.get(c)}, the log goes to {len(log[c])}"
                for c, users in who.items() if d.history.user in users and d.have.get(c, 0) < len(log[c])
            ]  # fmt: skip
        return wrong + list(truth.haunted(self._world.lives))

    def _arrived(self) -> list[str]:
        self._seen()  # counted from the last fault on, whatever else is not right yet
        return self._delivered()

    def _seen(self) -> list[str]:
        """What is wrong with what devices are told of users."""
        right = truth.looks(self._world.devices, self._world.lives, *self._logs())
        wrong = list(truth.presence(self._world.devices, right))
        failures = sum(line["event"] in UNANSWERED for line in self._world.logs) + sum(
            node.metrics.lease_failures for node in self._world.nodes
        )
        self._world.convergence.look(asyncio.get_running_loop().time(), right, wrong, failures)
        return wrong

    def _stored(self, who: dict[str, set[str]]) -> truth.Cursors:
        with psycopg.connect(self._world.place.conninfo) as conn:
            return {at: cursor for at, cursor in truth.read_cursors(conn).items() if at[0] in who}

    def _receipts(self) -> list[str]:
        log, who = self._logs()
        return list(truth.cursors(self._world.devices, self._stored(who), log, who, exact=not self._world.node_died))

    def _listed(self) -> list[str]:
        if unanswered := [
            f"{d.history.device} has no answer to {d.unanswered}"
            for d in self._world.devices
            if d.is_up and d.unanswered
        ]:
            return unanswered
        log, who = self._logs()
        wrong = list(truth.lists(self._world.devices, log, who, self._stored(who)))
        if wrong:  # the first question, or what was on its way between nodes when the last one was asked
            for device in self._world.devices:
                device.ask("conversations", limit=100)
        return wrong

    def _maps(self) -> list[str]:
        log, _ = self._logs()
        heads = {c: len(entries) for c, entries in log.items()}
        wrong = []
        for n, (node, home) in enumerate(zip(self._world.nodes, self._world.homes, strict=True)):
            if n not in self._world.down:
                found = home.look(lambda node=node: [*truth.failed(node), *maps.wrong(node), *truth.maps(node, heads)])  # type: ignore[misc]
                wrong += [f"node {n}: {one}" for one in found]
        return wrong

    def _checked(self) -> list[str]:
        log, who = self._logs()
        findings = checker.check([d.history for d in self._world.devices], log)
        for device in self._world.devices:
            if device.is_up:
                findings += checker.missing(
                    device.history, {c: log[c] for c, users in who.items() if device.history.user in users}
                )
        return [f"{f.what}: {f.sentence}" for f in findings] + [
            f"{d.history.device}: {fault}" for d in self._world.devices for fault in d.faults
        ]
