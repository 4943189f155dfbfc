"""Memory of an idle connection that has said hello: PSS of the server before and after N of them.

Kernel socket buffers and PostgreSQL are not in it. The first connections pay for what is made once, so some come before the first reading.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Final

from bench import report
from bench.crowd import Crowd
from bench.report import say
from bench.target import Target, TargetError

FIRST: Final = 100  # connections before the first reading
SETTLE_S: Final = 3.0


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, default=5_000, metavar="N", help="idle users (default: 5000)")
    parser.add_argument("--budget-kib", type=float, default=12, metavar="KIB", help="PSS a connection (default: 12)")


async def run(options: argparse.Namespace) -> int:
    async with Target(options) as target:
        if not target.own:
            raise TargetError("idle: memory is known for a server of our own only; leave --url out")
        first = Crowd(target, FIRST, options.seed + 1)
        await first.connect()
        await asyncio.sleep(SETTLE_S)
        before = target.memory_kib()
        crowd = Crowd(target, options.connections, options.seed)
        say(f"connecting {crowd.n} users")
        await crowd.connect()
        await asyncio.sleep(SETTLE_S)
        after = target.memory_kib()
        target.check()
        for one in (first, crowd):
            one.leave()
        figures = {
            "connections": crowd.n, "dropped": dict(crowd.dropped + first.dropped),
            "pss_before_mib": round(before[0] / 1024, 1), "pss_after_mib": round(after[0] / 1024, 1),
            "pss_kib_per_connection": round((after[0] - before[0]) / crowd.n, 2),
            "rss_kib_per_connection": round((after[1] - before[1]) / crowd.n, 2),
            **report.context(options, target.settings),
        }  # fmt: skip
    return report.finish(options, figures, {"pss_kib_per_connection": options.budget_kib})
