"""A long run under load with people coming and going: does anything grow?

Messages between pairs at a fixed rate, each accounted for, while `--churn` (1 %) of the connections
go and come back each second with their cursors. Every `--every` seconds: memory (PSS) of the
server, its descriptors, threads, gauges (connections, conversations in memory, asyncio tasks where
the server tells them), and the plans that PostgreSQL keeps for it. At the end: the slope of memory
over the last five minutes (or the last half of a shorter run), and the growth of each count there.
The generator's lag is reported all along.
"""

from __future__ import annotations

import argparse
import asyncio

from bench import report
from bench.gang import Gang
from bench.sending import NONE, Senders, shares
from bench.sending import flags as sending_flags
from bench.target import Target
from bench.watch import growth, slope_percent, watch

EXAMPLES = """\
  python -m bench soak                                          10 minutes at 5,000/s
  python -m bench soak --seconds 3600 --rate 2000               an hour
  python -m bench soak --seconds 20 --rate 200 --connections 100 --every 1    does it work?"""
END_S = 300.0
WINDOW_S = 30.0  # compared with each other, and shown
NOT_GROWING = ("server_handles", "server_threads", "postgres_sessions", "postgres_plans", "gauge_tasks_now")


def flags(parser: argparse.ArgumentParser) -> None:
    sending_flags(parser, rate=5_000, connections=1_000, seconds=600)
    parser.add_argument(
        "--churn",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of connections that go and come back each second (default: 0.01)",
    )
    parser.add_argument("--every", type=float, default=5, metavar="S", help="between two readings (default: 5)")
    parser.add_argument("--budget-slope-percent", type=float, default=1, metavar="P", help="of memory (default: 1)")
    parser.add_argument("--budget-p99-ms", type=float, default=500, metavar="MS", help="of delivery (default: 500)")


async def run(options: argparse.Namespace) -> int:
    end_s = min(END_S, options.seconds / 2)
    windows = max(1, min(20, int(options.seconds / WINDOW_S)))
    series: dict[str, list[list[float]]] = {}
    async with Target(options, admin=True) as target, Gang(target, options.seed) as gang:
        target.need_own("soak: what a server holds")
        ready = target.warm_wal(options.warm_wal_mib)
        senders = await Senders.start(target, gang, shares(options.connections, options.rate, options.generators))
        await senders.warm_up(min(10.0, options.seconds / 4))
        watching = asyncio.ensure_future(watch(target, options.every, series))
        try:
            await senders.measure(options.seconds, windows, churn=options.churn)
            if watching.done():
                watching.result()
        finally:
            watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        counted = [name for name in NOT_GROWING if name in series]
        figures = {
            "rate": options.rate,
            "connections": options.connections,
            "seconds": options.seconds,
            "churn": options.churn,
            "wal_segments_ready": ready,
            **senders.figures(),
            **senders.returns(),
            "judged_over_s": end_s,
            "pss_slope_percent": slope_percent(series["server_pss_mib"], end_s),
            **{f"{name}_growth": growth(series[name], end_s) for name in counted},
            "not_told_by_server": sorted(set(NOT_GROWING) - set(counted)),
            "windows": senders.windows(),
            "curves": senders.curves() | {"return": senders.merged("return").curve()},
            "series": series,
            **report.context(options, target),
        }
    most = {
        **NONE,
        "p99_ms": options.budget_p99_ms,
        "pss_slope_percent": options.budget_slope_percent,
        **{f"{name}_growth": 0.0 for name in counted},
    }
    return report.finish(options, figures, most)
