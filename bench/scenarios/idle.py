"""Memory of an idle connection that has said hello: PSS of the server before and after N of them.

Kernel socket buffers and PostgreSQL are not in it. The first connections pay for what is made once,
so some come before the first reading. They come in steps, with a reading after each: `windows` has
them, and `compare` tells noise by how they differ.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from typing import Final

from bench import report
from bench.gang import Gang
from bench.report import say
from bench.target import Target

EXAMPLES = """\
  python -m bench idle                         5,000 connections
  python -m bench idle --connections 10000     for memory a connection at a larger size"""
FIRST: Final = 100  # connections before the first reading
STEPS: Final = 5
SETTLE_S: Final = 3.0


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, default=5_000, metavar="N", help="idle users (default: 5000)")
    parser.add_argument(
        "--settle-s", type=float, default=SETTLE_S, metavar="S", help="waited before each reading (default: 3)"
    )
    parser.add_argument("--budget-kib", type=float, default=12, metavar="KIB", help="PSS a connection (default: 12)")


async def run(options: argparse.Namespace) -> int:
    async with Target(options) as target, Gang(target, options.seed) as gang:
        target.need_own("idle: memory")
        first = await gang.add("arrivals", "w", connections=FIRST)
        await first.do("come", n=FIRST, at_once=64)
        await asyncio.sleep(options.settle_s)
        n = max(1, options.connections // STEPS)
        crowd = await gang.add("arrivals", "i", connections=n * STEPS)
        before = last = target.memory_kib()
        windows = []
        for step in range(STEPS):
            await crowd.do("come", n=n, at_once=64)
            await asyncio.sleep(options.settle_s)
            now = target.memory_kib()
            windows.append(
                {
                    "pss_kib_per_connection": round((now[0] - last[0]) / n, 2),
                    "rss_kib_per_connection": round((now[1] - last[1]) / n, 2),
                }
            )
            last = now
            say(f"  {(step + 1) * n} connections: {(now[0] - before[0]) / n / (step + 1):.2f} KiB each")
        target.check()
        dropped = Counter(await crowd.do("dropped")) + Counter(await first.do("dropped"))
        figures = {
            "connections": n * STEPS, "dropped": dict(dropped), "lost": dropped.total(), "handles": target.handles(),
            "pss_before_mib": round(before[0] / 1024, 1), "pss_after_mib": round(last[0] / 1024, 1),
            "pss_kib_per_connection": round((last[0] - before[0]) / n / STEPS, 2),
            "rss_kib_per_connection": round((last[1] - before[1]) / n / STEPS, 2),
            "windows": windows, **report.context(options, target),
        }  # fmt: skip
    return report.finish(options, figures, {"lost": 0.0, "pss_kib_per_connection": options.budget_kib})
