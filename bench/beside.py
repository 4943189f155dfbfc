"""Honest users beside what is measured: they ask `ping`, send to each other and connect at a steady
pace, and say what they felt.

    people = await beside.start(gang); ...; felt = await beside.feel(target, people, seconds, at)

`send_*` is from due to ok, `delivery_*` to the peer's entry, `come_*` from dialling to the welcome.
`rss_before_mib` and `rss_most_mib`: memory of all nodes.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, Final

from bench import latency, report
from bench.gang import Gang, Generator
from bench.target import Target

USERS: Final = tuple(f"honest{n}" for n in range(20))  # names that others may have conversations with
NEWCOMERS: Final = tuple(f"new{n}" for n in range(10))
PINGS_PER_S: Final = 100.0
SENDS_PER_S: Final = 25.0
COMES_PER_S: Final = 2.0
SAMPLE_S: Final = 0.25
# What must not happen to them
NEVER: Final = ("lost", "duplicated", "reordered", "stray", "dropped_n", "unanswered", "kept_out")


async def start(gang: Gang) -> Generator:
    """They are there, and have sent once.

    What others wrote to them before is to be in the database by now.
    """
    people = await gang.add("honest", users=list(USERS), newcomers=list(NEWCOMERS))
    await people.do("connect")
    await people.do("open_all")
    return people


async def feel(target: Target, people: Generator, seconds: float, at: float) -> dict[str, Any]:
    """Figures of so long, from that time on; what must not happen is counted over all of the run."""
    before, cpu, started = _rss_kib(target), target.cpu(), time.perf_counter()
    watching = asyncio.ensure_future(_most_kib(target))
    try:
        await people.do("fire", pings=PINGS_PER_S, sends=SENDS_PER_S, comes=COMES_PER_S, seconds=seconds, at=at)
    finally:
        watching.cancel()
    most, used, wall_s = await watching, target.cpu().since(cpu), time.perf_counter() - started
    target.check()
    facts = await people.do("facts")
    ping, ack, delivery, come = (latency.merged([facts[name]]) for name in ("ping", "ack", "delivery", "come"))
    return {
        "ping_p50_ms": ping.at(50),
        "ping_p99_ms": ping.at(99),
        "send_p50_ms": ack.at(50),
        "send_p99_ms": ack.at(99),
        "delivery_p99_ms": delivery.at(99),
        "come_p50_ms": come.at(50),
        "come_max_ms": come.at(100),
        "generator_lag_p99_ms": latency.merged([facts["lag"]]).at(99),
        "dropped_n": sum(facts["dropped"].values()),
        **{name: facts[name] for name in (*NEVER, "errors", "dropped") if name in facts},
        "rss_before_mib": _mib(before),
        "rss_most_mib": _mib(max(before, most)),
        "cores": report.costs(used, wall_s, 1, True)["cores"],
        "load_1m": round(os.getloadavg()[0], 1),
    }


def rss_mib(target: Target) -> float:
    """Of all nodes, now."""
    return _mib(_rss_kib(target))


async def _most_kib(target: Target) -> int:
    """The most that the nodes held at one time, until it is cancelled."""
    most = 0
    try:
        while True:
            most = max(most, _rss_kib(target))
            await asyncio.sleep(SAMPLE_S)
    except asyncio.CancelledError:
        return most


def _rss_kib(target: Target) -> int:
    return target.memory_kib()[1]


def _mib(kib: int) -> float:
    return round(kib / 1024, 1)
