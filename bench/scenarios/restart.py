"""A restart storm: N users are there, the node restarts, and all come back at once.

Twice, with a restart before each: `cold`, where no client knows anything and gets all of its
conversations, and `marks`, where each says the mark of its last welcome. Nothing has changed since,
so with a mark nothing is to be listed (`marks_listed`). The node knows nobody after a restart.
`*_seconds_to_all` is from the first dial to the last welcome, the waiting for a turn to dial
(`--at-once`) included; `*_p99_ms` from each one's own dial. Costs are of the node and of PostgreSQL
a hello, in microseconds.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from bench import contact_logs, latency, layout, report
from bench.gang import Gang, Generator, everybody, soon
from bench.report import say
from bench.target import Target

EXAMPLES = """\
  python -m bench restart --contacts 200                        10,000 users with 200 conversations each
  python -m bench restart --contacts 200 --connections 2000     smaller
  python -m bench restart --contacts 5000 --connections 400     few users with many
  python -m bench restart --only marks                          no conversations; with marks alone"""
WAYS = ("cold", "marks")


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, default=10_000, metavar="N", help="users (default: 10000)")
    parser.add_argument(
        "--at-once", type=int, default=500, metavar="N", help="dialling at the same time (default: 500)"
    )
    parser.add_argument(
        "--generators", type=int, default=1, metavar="G", help="processes that make the load (default: 1)"
    )
    parser.add_argument("--only", choices=WAYS, help="one of the two storms (default: both)")
    layout.flags(parser)
    contact_logs.flags(parser)
    parser.add_argument("--budget-cold-s", type=float, default=20, metavar="S", help="until all are back (default: 20)")
    parser.add_argument("--budget-marks-s", type=float, default=8, metavar="S", help="with their marks (default: 8)")


async def run(options: argparse.Namespace) -> int:
    g = options.generators
    n = max(1, options.connections // g)
    contacts = contact_logs.of(options, n * g)
    ways = [way for way in WAYS if options.only in (None, way)]
    async with (
        contact_logs.target(options, contacts, nodes=options.nodes) as target,
        Gang(target, options.seed) as gang,
    ):
        target.need_own("restart: our own server")
        firsts = [None if contacts is None else n * i for i in range(g)]
        users = [await gang.add("arrivals", "a", connections=n, first=first) for first in firsts]
        say(f"{n * g} users come")
        await everybody(users, "come", n=n, at_once=options.at_once // g)
        figures: dict[str, Any] = {
            "connections": n * g,
            "at_once": options.at_once,
            "nodes": options.nodes,
            **contact_logs.figures(contacts),
        }
        curves = {}
        for way in ways:
            storm, curves[way] = await _storm(options, target, users, n, way)
            figures |= storm
        dropped: Counter[str] = Counter()
        for one in users:
            dropped.update(await one.do("dropped"))
        figures |= {"dropped": dict(dropped), "lost": dropped.total(), "curves": curves}
        figures |= report.context(options, target)
    bounds = {"cold": options.budget_cold_s, "marks": options.budget_marks_s}
    return report.finish(options, figures, {"lost": 0.0, **{f"{way}_seconds_to_all": bounds[way] for way in ways}})


async def _storm(
    options: argparse.Namespace, target: Target, users: list[Generator], n: int, way: str
) -> tuple[dict[str, Any], list[list[float]]]:
    await everybody(users, "leave")
    await target.restart()
    say(f"measured: all come back, {way}")
    before, at = target.cpu(), soon()
    at_once = max(1, options.at_once // len(users))
    came = await everybody(users, "come", n=n, at_once=at_once, at=at, marks=way == "marks")
    seconds = max(one["seconds"] for one in came)
    used = target.cpu().since(before)
    target.check()
    hello = latency.merged(one["hello"] for one in came)
    lag = latency.merged(one["lag"] for one in came)
    say(f"  back in {seconds:.2f} s")
    figures = {
        "seconds_to_all": round(seconds, 3),
        "listed": sum(one["listed"] for one in came),
        **hello.figures(),
        "server_cpu_us_per_hello": round(used.server / hello.n * 1e6, 1),
        "postgres_cpu_us_per_hello": round(used.postgres / hello.n * 1e6, 1),
        "client_loop_lag_p99_ms": lag.at(99),
        "cores": report.costs(used, seconds, hello.n, target.own)["cores"],
    }
    return {f"{way}_{name}": value for name, value in figures.items()}, hello.curve()
