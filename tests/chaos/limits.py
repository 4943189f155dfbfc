"""The limits that all nodes share, judged by what was sent and acked: no period holds more than it
may, whoever is over is told, nobody for good.

    over(...)            pure: the periods that hold more acks than the limit and the outages in them allow
    Outages              when nodes counted alone, and when Redis forgot
    await probe(...)     once all is quiet: a user over the rate, and one over the new conversations, at two nodes
                         at once
    await crowd(...)     the same for one with too many devices, over all nodes

An entry took its place in the period between its first send and its first `ok`. Only what lies in a
period with both ends is counted, so whatever this machine was busy with, a finding is one. While
Redis is away, and for one period after it forgot, docs/cluster.md allows the limit at each node.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from chatd.core.admission import AdmissionQueue
from tests.chaos.device import TOO_MANY, Device, Life
from tests.faults.client import Client
from tests.until import Late, until

MESSAGES: Final = 10
PER_MS: Final = 300
NEW: Final = 3  # conversations an hour
HOUR_S: Final = 0.6  # so long is one here
FOR_GOOD_S: Final = 8.0
RATE_SENDS: Final = 12  # at each node, over MESSAGES
NEW_SENDS: Final = 3
ROOM: Final[dict[str, Any]] = {"rate_messages": MESSAGES, "rate_per_ms": PER_MS, "new_conversations_per_hour": NEW}

Span = tuple[float, float]  # first send, first ok


@dataclass(slots=True)
class Outages:
    """Times by the monotonic clock, which is that of all loops."""

    alone: list[float] = field(default_factory=list)  # a node decided by its own count
    forgot: list[float] = field(default_factory=list)  # Redis lost takes, or its clock was stepped

    def touch(self, since: float, until: float) -> bool:
        return any(since <= at <= until for at in (*self.alone, *self.forgot))


@contextlib.contextmanager
def watched(outages: Outages, now: Callable[[], float]) -> Iterator[None]:
    """Note in `outages` what nodes decide alone."""
    real = AdmissionQueue._run_alone

    def run_alone(self: AdmissionQueue, waiting: Sequence[Any]) -> None:
        if waiting:
            outages.alone.append(now())
        real(self, waiting)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdmissionQueue, "_run_alone", run_alone)
        yield


def spans(clients: Iterable[Client]) -> dict[str, list[Span]]:
    """By user, of each entry that was acked."""
    found: dict[str, dict[str, Span]] = {}
    for client in clients:
        mine = found.setdefault(client.history.user, {})
        for at, _, cid in client.ok_at:
            if cid in client.sent_at:
                mine.setdefault(cid, (client.sent_at[cid], at))
    return {user: list(of_cid.values()) for user, of_cid in found.items()}


def over(
    user: str,
    acked: Sequence[Span],
    limit: int,
    period_s: float,
    outages: Outages,
    nodes: Callable[[float, float], int],
) -> list[str]:
    """`nodes`: how many there were between two times."""
    wrong = []
    for since in sorted({sent for sent, _ in acked}):
        until = since + period_s
        n = sum(sent >= since and ok < until for sent, ok in acked)
        allowed = limit * (nodes(since, until) if outages.touch(since - period_s, until) else 1)
        if n > allowed:
            wrong.append(f"over: {user} was acked {n} in {period_s} s from {since:.3f} on, allowed are {allowed}")
    return wrong


async def probe(
    places: Sequence[str], names: tuple[str, str], token: Callable[[str], str], rng: random.Random, outages: Outages
) -> list[str]:  # fmt: skip
    """`places`:

    URLs of the nodes, two of which are used. `names`: of a user who sends much, and of one who
    opens much.
    """
    two = [*places, *places][:2] if len(places) < 2 else rng.sample(list(places), 2)
    clients = [Client(url, token(name), name, f"{name}-{n}", rng) for n, url in enumerate(two) for name in names]
    lives = [asyncio.create_task(client.run()) for client in clients]
    try:
        return await _probed(clients, names, outages)
    except TimeoutError:
        left = [
            (client.history.device, client.unsent, client.errors[-1:])
            for client in clients
            if client.unsent or not client.live.is_set()
        ]
        return [f"for good: not within {FOR_GOOD_S} s: {left}"]
    finally:
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)


async def crowd(places: Sequence[str], name: str, token: str, rng: random.Random, devices_max: int) -> list[str]:
    """More devices than a user may have come to all nodes: as many stay, and the others were told."""
    lives: list[Life] = []
    at = [(n, places[n % len(places)]) for n in range(devices_max + 2)]
    devices = [Device(name, f"{name}-{n}", token, rng, lambda place=place: place, lives) for n, place in enumerate(at)]  # type: ignore[misc]
    tasks = [asyncio.create_task(device.run()) for device in devices]

    def counts() -> tuple[int, int]:
        return sum(device.is_up for device in devices), sum(life.code == TOO_MANY for life in lives)

    try:
        for device in devices:
            device.wanted.set()
        await until(lambda: counts() == (devices_max, len(devices) - devices_max), within_s=FOR_GOOD_S)
    except Late:
        up, told = counts()
        return [f"sessions: {name} has {up}, allowed are {devices_max}; {told} were told so"]
    else:
        return []
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _probed(clients: Sequence[Client], names: tuple[str, str], outages: Outages) -> list[str]:
    async with asyncio.timeout(FOR_GOOD_S):
        await asyncio.gather(*(client.live.wait() for client in clients))
        for n, client in enumerate(clients):
            if client.history.user == names[0]:
                for _ in range(RATE_SENDS):
                    client.post(names[0], "message", "much")
            else:
                for one in range(NEW_SENDS):
                    client.post(f"{names[1]}-{n}-{one}", "message", "hello")
        for client in clients:
            await client.until(lambda client=client: not client.unsent, FOR_GOOD_S)  # type: ignore[misc]
    of = spans(clients)
    wrong = over(names[0], of[names[0]], MESSAGES, PER_MS / 1000, outages, lambda *_: 2)
    wrong += over(names[1], of[names[1]], NEW, HOUR_S, outages, lambda *_: 2)
    for name, code, period_s in (
        (names[0], "rate_limited", PER_MS / 1000),
        (names[1], "too_many_conversations", HOUR_S),
    ):
        mine = [client for client in clients if client.history.user == name]
        sent = [at for client in mine for at in client.sent_at.values()]
        told = [frame for client in mine for frame in client.errors if frame["code"] == code]
        if (
            not told
            and max(sent) - min(sent) < period_s
            and not outages.touch(min(sent) - period_s, max(sent) + period_s)
        ):
            wrong.append(f"untold: {name} was over a limit, and nobody said {code}")
        wrong += [f"untold: {frame} says no time" for frame in told if not frame.get("retry_ms")]
        wrong += [f"{client.history.device}: {fault}" for client in mine for fault in client.faults]
    return wrong
