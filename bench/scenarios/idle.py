"""Memory of an idle connection that has said hello: PSS of the server before and after N of them.

Kernel socket buffers and PostgreSQL are not in it. The first connections pay for what is made once,
so some come before the first reading. They come in steps, with a reading after each: `windows` has
them, and `compare` tells noise by how they differ. Then nothing happens for `--idle-s`, and
`*_cpu_ms_per_s` is what of a second a node (the mean of all), PostgreSQL and Redis are busy.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from typing import Final

from bench import contact_logs, layout, report
from bench.gang import Gang
from bench.report import say
from bench.target import Target

EXAMPLES = """\
  python -m bench idle                         5,000 connections
  python -m bench idle --connections 10000     for memory a connection at a larger size
  python -m bench idle --nodes 8 --connections 8000    does an idle node cost more where there are many?
  python -m bench idle --contacts 200 --connections 4000       users with 200 conversations each
  python -m bench idle --contacts 5000 --connections 400       5,000 each; the others never come"""
FIRST: Final = 100  # connections of a node before the first reading
STEPS: Final = 5
SETTLE_S: Final = 3.0
IDLE_S: Final = 20.0  # the heartbeat: each connection is asked once whether it lives


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, default=5_000, metavar="N", help="idle users (default: 5000)")
    parser.add_argument(
        "--settle-s", type=float, default=SETTLE_S, metavar="S", help="waited before each reading (default: 3)"
    )
    parser.add_argument(
        "--idle-s", type=float, default=IDLE_S, metavar="S", help="how long CPU is measured; 0: not (default: 20)"
    )
    layout.flags(parser)
    contact_logs.flags(parser)
    parser.add_argument("--budget-kib", type=float, default=12, metavar="KIB", help="PSS a connection (default: 12)")


async def run(options: argparse.Namespace) -> int:
    n = max(1, options.connections // STEPS)
    contacts = contact_logs.of(options, n * STEPS)
    async with (
        contact_logs.target(options, contacts, nodes=options.nodes) as target,
        Gang(target, options.seed) as gang,
    ):
        target.need_own("idle: memory")
        first = await gang.add("arrivals", "w", connections=FIRST * options.nodes)
        await first.do("come", n=FIRST * options.nodes, at_once=64)
        await asyncio.sleep(options.settle_s)
        crowd = await gang.add("arrivals", "i", connections=n * STEPS, first=None if contacts is None else 0)
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
        idle = await _idle_cpu(target, options.idle_s) if options.idle_s else {}
        target.check()
        dropped = Counter(await crowd.do("dropped")) + Counter(await first.do("dropped"))
        figures = {
            "connections": n * STEPS, "nodes": options.nodes,
            "dropped": dict(dropped), "lost": dropped.total(), "handles": target.handles(),
            "pss_before_mib": round(before[0] / 1024, 1), "pss_after_mib": round(last[0] / 1024, 1),
            "pss_kib_per_connection": round((last[0] - before[0]) / n / STEPS, 2),
            "rss_kib_per_connection": round((last[1] - before[1]) / n / STEPS, 2),
            **contact_logs.figures(contacts), **idle, "windows": windows, **report.context(options, target),
        }  # fmt: skip
    return report.finish(options, figures, {"lost": 0.0, "pss_kib_per_connection": options.budget_kib})


async def _idle_cpu(target: Target, seconds: float) -> dict[str, float]:
    """Milliseconds of CPU a second."""
    say(f"measured: nothing, for {seconds:g} s")
    before, started = target.cpu(), time.perf_counter()
    await asyncio.sleep(seconds)
    used, wall_s = target.cpu().since(before), time.perf_counter() - started
    parts = {"node": used.server / len(used.nodes), "postgres": used.postgres, "redis": used.redis}
    return {f"{part}_cpu_ms_per_s": round(cpu_s / wall_s * 1000, 2) for part, cpu_s in parts.items()}
