"""The highest rate that holds: doubled until a window fails, then bisected.

A window holds if every message of it is acked and delivered exactly once, in order, within the
budget (p95 200 ms, p99 500 ms), with the generator itself in time. One that fails for its latency
alone is tried once more. Each is sent by new users over new connections, so that what one leaves
behind (refused sends, queues) is none of the next one's; PostgreSQL's segments are written
beforehand. After the search the highest rate that held is measured again for `--final` seconds:
those figures are the report's.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from bench import contact_logs, layout, report
from bench.gang import Gang
from bench.report import say
from bench.sending import NONE, Senders, shares, windows_of
from bench.target import Target, TargetError

EXAMPLES = """\
  python -m bench saturate                                    200 connections
  python -m bench saturate --connections 1000 --start 8000    1,000, from a rate that is known to hold
  python -m bench saturate --limit 4000 --window 1            a quick look
  python -m bench saturate --nodes 2 --cross 1 --start 8000   two nodes, every message from one to the other
  python -m bench saturate --connections 2000 --contacts 200 --log 10M --start 8000    as users are"""
LATE = "the generator was late itself"
# What is kept of each window
TRIED = ("rate", *NONE, "p50_ms", "p95_ms", "p99_ms", "generator_lag_p99_ms", "errors", "dropped", "holds", "why")
SETTLE_S = 1.0  # between windows: the last one's connections are gone


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--connections", type=int, default=200, metavar="N", help="connections, in pairs of users (default: 200)"
    )
    parser.add_argument(
        "--start", type=float, default=2_000, metavar="R", help="the first rate, messages a second (default: 2000)"
    )
    parser.add_argument(
        "--limit", type=float, default=1_000_000, metavar="R", help="never more than that (default: 1000000)"
    )
    parser.add_argument("--window", type=float, default=5, metavar="S", help="how long each rate is held (default: 5)")
    parser.add_argument(
        "--final", type=float, default=10, metavar="S", help="how long the highest is held again (default: 10)"
    )
    parser.add_argument(
        "--resolution",
        type=float,
        default=0.05,
        metavar="PART",
        help="bisect until the step is below that part (default: 0.05)",
    )
    parser.add_argument(
        "--generators", type=int, default=1, metavar="G", help="processes that make the load (default: 1)"
    )
    parser.add_argument(
        "--warm-wal-mib",
        type=int,
        default=512,
        metavar="MIB",
        help="WAL written first, to have segments ready (default: 512)",
    )
    layout.flags(parser, cross=True)
    contact_logs.flags(parser)
    parser.add_argument("--budget-p95-ms", type=float, default=200, metavar="MS", help="of delivery (default: 200)")
    parser.add_argument("--budget-p99-ms", type=float, default=500, metavar="MS", help="of delivery (default: 500)")
    parser.add_argument(
        "--budget-rate", type=float, default=0, metavar="R", help="the highest rate is to be that or more (default: 0)"
    )


Judge = Callable[[float], Awaitable[bool]]


async def search(start: float, limit: float, resolution: float, holds: Judge) -> float:
    """The highest rate that `holds`, within `resolution`; 0.0 if none does. Doubling from `start`,
    then halving the step; below `start` if that fails.
    """
    low, high, rate = 0.0, 0.0, min(start, limit)
    while not (low and high):
        if await holds(rate):
            low = rate
            if rate >= limit:
                return low
            rate = min(2 * rate, limit)
        else:
            high = rate
            rate /= 2
            if rate < 1:
                return 0.0
    while high - low > resolution * high:
        middle = (low + high) / 2
        if await holds(middle):
            low = middle
        else:
            high = middle
    return low


async def run(options: argparse.Namespace) -> int:
    if options.start <= 0 or not 0 < options.resolution < 1:
        raise TargetError("--start is above 0, --resolution between 0 and 1")
    tried: list[dict[str, Any]] = []
    people = shares(options.connections, options.start, options.generators)
    contacts = contact_logs.of(options, people[0].connections, writing=True)
    async with contact_logs.target(options, contacts, nodes=options.nodes) as target:
        ready = target.warm_wal(options.warm_wal_mib)

        async def once(rate: float, seconds: float) -> dict[str, Any]:
            figures = await _window(options, target, rate, seconds, f"w{len(tried)}-")
            tried.append({name: figures[name] for name in TRIED})
            say(
                f"  {rate:,.0f}/s {'holds' if figures['holds'] else 'fails: ' + figures['why']}; p95"
                f" {figures['p95_ms']}, p99 {figures['p99_ms']} ms"
            )
            return figures

        async def holds(rate: float) -> bool:
            figures = await once(rate, options.window)
            if not figures["holds"] and not figures["lost"]:
                figures = await once(rate, options.window)
            return bool(figures["holds"])

        highest = await search(options.start, options.limit, options.resolution, holds)
        if not highest:
            raise TargetError(f"no rate holds, down to 1 message/s; the last: {tried[-1]['why']}")
        while True:  # once more, for longer; what does not hold then did not hold
            final = await once(highest, options.final)
            if final["holds"] or highest < options.start / 8:
                break
            highest *= 1 - options.resolution
        figures = {
            "highest_rate": round(highest, 1) if final["holds"] else None,
            "connections": options.connections,
            "nodes": options.nodes,
            **contact_logs.figures(contacts),
            "wal_segments_ready": ready,
            # More --generators may find more
            "bounded_by_generator": any(one["why"] == LATE and one["rate"] > highest for one in tried),
            **{name: value for name, value in final.items() if name not in ("holds", "why")},
            "tried": tried,
            **report.context(options, target),
        }
    most = {**NONE, "p95_ms": options.budget_p95_ms, "p99_ms": options.budget_p99_ms}
    return report.finish(options, figures, most, {"highest_rate": options.budget_rate})


async def _window(options: argparse.Namespace, target: Target, rate: float, seconds: float, tag: str) -> dict[str, Any]:
    async with Gang(target, options.seed) as gang:
        parts = shares(options.connections, rate, options.generators)
        senders = await Senders.start(target, gang, parts, tag=tag, cross=options.cross, contacts=options.contacts)
        await senders.warm_up(1.0)
        await senders.measure(seconds, windows_of(seconds))
        await senders.leave()
    await asyncio.sleep(SETTLE_S)
    figures = {
        "rate": rate,
        "seconds": seconds,
        **senders.figures(),
        **(senders.parts() if target.own else {}),
        "windows": senders.windows(),
        "curves": senders.curves(),
    }
    over, late = report.judge(figures, {**NONE, "p95_ms": options.budget_p95_ms, "p99_ms": options.budget_p99_ms})
    return figures | {"holds": not over and not late, "why": "; ".join(over) or (LATE if late else "")}
