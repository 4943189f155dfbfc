"""A storm of hellos: N users come at once, as after a restart; the time each takes from dialling to its last welcome frame.

`--at-once` dial at the same time; the rest wait their turn in the bench, and their time starts when they dial. One process makes all of them, so
its own CPU is a good part of what is measured: `cores` tells.
"""

from __future__ import annotations

import argparse
import time

from bench import latency, report
from bench.crowd import Crowd
from bench.report import say
from bench.target import Target


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, default=2_000, metavar="N", help="users who come (default: 2000)")
    parser.add_argument("--at-once", type=int, default=200, metavar="N", help="dialling at the same time (default: 200)")
    parser.add_argument("--budget-p99-ms", type=float, default=500, metavar="MS", help="from dialling to welcome (default: 500)")


async def run(options: argparse.Namespace) -> int:
    async with Target(options) as target:
        warm = Crowd(target, 100, options.seed + 1)
        await warm.connect()
        crowd = Crowd(target, options.connections, options.seed)
        say(f"{crowd.n} users come, {options.at_once} at once")
        cpu, started = target.cpu(), time.perf_counter()
        times = await crowd.connect(options.at_once)
        wall_s, used = time.perf_counter() - started, target.cpu().since(cpu)
        target.check()
        for one in (warm, crowd):
            one.leave()
        figures = {
            "connections": crowd.n, "at_once": options.at_once, "seconds": round(wall_s, 3), "hellos_per_s": round(crowd.n / wall_s, 1),
            "dropped": dict(crowd.dropped), **latency.summary(times), **report.costs(used, wall_s, crowd.n, target.own),
            **report.context(options, target.settings),
        }  # fmt: skip
    return report.finish(options, figures, {"p99_ms": options.budget_p99_ms})
