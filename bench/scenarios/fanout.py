"""Two nodes against one: what a message costs that crosses from node to node over Redis, and how
long it takes.

The same load over each layout, one after the other, each on a fresh database. With two nodes every
message crosses: the peers of a pair are never at the same one.

    one          a node, no Redis
    one-redis    a node that has a Redis (for nodes that may come)
    two          two nodes, Redis between them
"""

from __future__ import annotations

import argparse
from typing import Any, Final

from bench import report
from bench.gang import Gang
from bench.report import say
from bench.sending import NONE, WARMUP_S, Senders, shares, windows_of
from bench.sending import flags as sending_flags
from bench.target import Target, TargetError

EXAMPLES = """\
  python -m bench fanout                          1,000 messages/s over one node, then over two
  python -m bench fanout --rate 8000 --connections 200
  python -m bench fanout --layouts one,one-redis,two"""
LAYOUTS: Final = {"one": (1, False), "one-redis": (1, True), "two": (2, True)}


def flags(parser: argparse.ArgumentParser) -> None:
    sending_flags(parser, rate=1_000, connections=300, seconds=15)
    parser.add_argument(
        "--layouts", default="one,two", metavar="L,...", help=f"of {', '.join(LAYOUTS)} (default: one,two)"
    )
    parser.add_argument(
        "--budget-p99-ms", type=float, default=25, metavar="MS", help="of delivery from node to node (default: 25)"
    )


async def run(options: argparse.Namespace) -> int:
    layouts = options.layouts.split(",")
    if not layouts or set(layouts) - set(LAYOUTS):
        raise TargetError(f"--layouts: of {', '.join(LAYOUTS)}")
    if options.url is not None:
        raise TargetError("fanout: starts nodes of its own; leave --url out")
    figures: dict[str, Any] = {"rate": options.rate, "connections": options.connections, "seconds": options.seconds}
    curves, windows, context = {}, [], {}
    for layout in layouts:
        nodes, redis = LAYOUTS[layout]
        say(f"layout {layout}: {nodes} nodes, {'with' if redis else 'without'} Redis")
        async with Target(options, nodes=nodes, redis=redis) as target, Gang(target, options.seed) as gang:
            target.warm_wal(options.warm_wal_mib)
            senders = await Senders.start(target, gang, shares(options.connections, options.rate, options.generators))
            await senders.warm_up(min(WARMUP_S, options.seconds))
            await senders.measure(options.seconds, windows_of(options.seconds))
            name = layout.replace("-", "_")
            figures |= senders.figures(f"{name}_") | _parts(senders, f"{name}_")
            curves[layout] = senders.curves()["delivery"]
            windows.append([{f"{name}_{k}": v for k, v in w.items()} for w in senders.windows()])
            context = report.context(options, target)
    if {"one", "two"} <= set(layouts):
        for part in ("server", "postgres"):
            one, two = (figures[f"{layout}_{part}_cpu_us_per_msg"] for layout in ("one", "two"))
            figures[f"{part}_two_to_one"] = round(two / one, 2) if one and two else None
    figures |= {
        "windows": [{k: v for w in several for k, v in w.items()} for several in zip(*windows, strict=True)],
        "curves": curves,
        **context,
    }
    most = {f"{layout.replace('-', '_')}_{name}": 0.0 for layout in layouts for name in NONE}
    return report.finish(options, figures, most | ({"two_p99_ms": options.budget_p99_ms} if "two" in layouts else {}))


def _parts(senders: Senders, prefix: str) -> dict[str, Any]:
    """CPU of each node and of Redis a message, in microseconds."""
    used, n = senders.cpu[-1].since(senders.cpu[0]), max(1, senders.total("sent"))
    nodes = {f"{prefix}node{i}_cpu_us_per_msg": round(seconds / n * 1e6, 1) for i, seconds in enumerate(used.nodes)}
    return nodes | {f"{prefix}redis_cpu_us_per_msg": round(used.redis / n * 1e6, 1)}
