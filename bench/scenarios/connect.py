"""A storm of hellos:

N users come at once, as after a restart; the time each takes from dialling to its last welcome
frame.

`--at-once` dial at the same time; the rest wait their turn in the bench, and their time starts when
they dial. One process makes all of them, so its own CPU is a good part of what is measured: `cores`
tells. They come in ten parts, one after the other, so that `compare` can tell noise.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter

from bench import contact_logs, latency, report
from bench.gang import Gang, everybody
from bench.report import say

EXAMPLES = """\
  python -m bench connect                                       2,000 users, 200 at once
  python -m bench connect --connections 10000 --generators 2    10,000, dialled by two processes
  python -m bench connect --connections 10000 --contacts 200    whose 200 conversations each are in the welcome"""
PARTS = 10
FIRST = 100  # users who come before, as the first pay for what is made once


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, default=2_000, metavar="N", help="users who come (default: 2000)")
    parser.add_argument(
        "--at-once", type=int, default=200, metavar="N", help="dialling at the same time (default: 200)"
    )
    parser.add_argument(
        "--generators", type=int, default=1, metavar="G", help="processes that make the load (default: 1)"
    )
    contact_logs.flags(parser)
    parser.add_argument(
        "--budget-p99-ms", type=float, default=500, metavar="MS", help="from dialling to welcome (default: 500)"
    )


async def run(options: argparse.Namespace) -> int:
    g = options.generators
    n = max(1, options.connections // PARTS // g)
    contacts = contact_logs.of(options, n * PARTS * g)
    async with contact_logs.target(options, contacts) as target, Gang(target, options.seed) as gang:
        warm = await gang.add("arrivals", "w", connections=FIRST)
        await warm.do("come", n=FIRST, at_once=options.at_once)
        firsts = [None if contacts is None else n * PARTS * i for i in range(g)]
        generators = [await gang.add("arrivals", "a", connections=n * PARTS, first=first) for first in firsts]
        say(f"{n * PARTS * g} users come, {options.at_once} at once")
        progress = report.Progress("connected", n * PARTS * g)
        before, windows, whole, lag = target.cpu(), [], latency.Latencies(), latency.Latencies()
        started = time.perf_counter()
        for part in range(PARTS):
            cpu, then = target.cpu(), time.perf_counter()
            came = await everybody(generators, "come", n=n, at_once=max(1, options.at_once // g))
            wall_s = time.perf_counter() - then
            hello = latency.merged(one["hello"] for one in came)
            whole.merge(hello)
            lag.merge(latency.merged(one["lag"] for one in came))
            windows.append(
                {
                    **hello.figures(),
                    "hellos_per_s": round(n * g / wall_s, 1),
                    **report.each(target.cpu().since(cpu), n * g, target.own),
                }
            )
            progress.at((part + 1) * n * g)
        seconds, used = time.perf_counter() - started, target.cpu().since(before)
        target.check()
        dropped: Counter[int] = Counter()
        for one in (warm, *generators):
            dropped.update(await one.do("dropped"))
        await asyncio.gather(*(one.do("leave") for one in (warm, *generators)))
        figures = {
            "connections": whole.n,
            "at_once": options.at_once,
            **contact_logs.figures(contacts),
            "seconds_to_all": round(seconds, 3),
            "hellos_per_s": round(whole.n / seconds, 1),
            "dropped": dict(dropped),
            "lost": dropped.total(),
            **whole.figures(),
            "client_loop_lag_p99_ms": lag.at(99),
            **report.costs(used, seconds, whole.n, target.own),
            "windows": windows,
            "curves": {"hello": whole.curve()},
            **report.context(options, target),
        }
    return report.finish(options, figures, {"p99_ms": options.budget_p99_ms, "lost": 0.0})
