"""N nodes against one: what a message costs that crosses from node to node over Redis, and how long
it takes.

The same load over each number of nodes, one after the other, each on a fresh PostgreSQL (and Redis,
where there are several). `--cross` is the share of the messages whose two people are at different
nodes.

    nN_cpu_us_per_msg          all of them: nodes, PostgreSQL, Redis
    nN_server_, nN_nodeI_      all nodes; each of them
    nN_postgres_, nN_redis_    the rest
    nN_to_nM                   N's cpu_us_per_msg divided by M's, the first of --nodes
    nN_p50_ms, nN_lost ...     as in `send`

With `--kill` one of several nodes is killed in the middle of the time. Its users dial another one at
once, with their cursors, and send again what was not acked: nothing may be lost, doubled or out of
order. `nN_return_*` is from the cut until they are back and have sent all that was due. CPU and
latencies are of the whole time and of no budget.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench import layout, report
from bench.gang import Gang
from bench.report import say
from bench.sending import NONE, WARMUP_S, Senders, shares, windows_of
from bench.sending import flags as sending_flags
from bench.target import Target, TargetError

EXAMPLES = """\
  python -m bench fanout                                        1,000 messages/s over one node, then over two
  python -m bench fanout --nodes 1,2 --rate 16000 --connections 200    the same at a high rate
  python -m bench fanout --nodes 2,4,8 --rate-per-node 100      does the cost grow with the number of nodes?
  python -m bench fanout --nodes 2 --cross 0.5                  half of the messages stay at their node; no ratio
  python -m bench fanout --nodes 2 --rate 20000 --connections 200 --kill    one node dies at that rate
  python -m bench fanout --nodes 1,2 --redis                    one node has a Redis too, for nodes that may come"""


def flags(parser: argparse.ArgumentParser) -> None:
    sending_flags(parser, rate=1_000, connections=300, seconds=15)
    parser.add_argument(
        "--nodes",
        type=layout.nodes,
        default=[1, 2],
        metavar="N[,N...]",
        help="one run each; ratios are to the first (default: 1,2)",
    )
    layout.cross_flag(parser)
    parser.add_argument(
        "--rate-per-node",
        type=float,
        metavar="R",
        help="messages a second of each node instead of --rate; --connections are of each node then, too",
    )
    parser.add_argument("--kill", action="store_true", help="kill one of several nodes in the middle of the time")
    parser.add_argument("--redis", action="store_true", help="a single node has a Redis, too")
    parser.add_argument(
        "--budget-p99-ms", type=float, default=25, metavar="MS", help="of delivery, with several nodes (default: 25)"
    )


@dataclass(frozen=True, slots=True)
class Offered:
    """What N nodes get, all together."""

    nodes: int
    rate: float
    connections: int

    @classmethod
    def of(cls, options: argparse.Namespace, nodes: int) -> Offered:
        if options.rate_per_node is None:
            return cls(nodes, options.rate, options.connections)
        return cls(nodes, options.rate_per_node * nodes, options.connections * nodes)


async def run(options: argparse.Namespace) -> int:
    if options.url is not None:
        raise TargetError("fanout: starts nodes of its own; leave --url out")
    layouts = [Offered.of(options, n) for n in options.nodes]
    figures: dict[str, Any] = {"cross": options.cross, "seconds": options.seconds}
    curves, windows, context = {}, [], {}
    for offered in layouts:
        prefix = f"n{offered.nodes}_"
        async with (
            Target(options, nodes=offered.nodes, redis=options.redis) as target,
            Gang(target, options.seed) as gang,
        ):
            senders = await _measure(options, offered, target, gang)
            figures |= {f"{prefix}rate": offered.rate, f"{prefix}connections": offered.connections}
            figures |= senders.figures(prefix) | senders.parts(prefix)
            if _kills(options, offered):
                figures |= senders.returns(prefix)
            curves[f"{offered.nodes} nodes"] = senders.curves()["delivery"]
            windows.append([{prefix + k: v for k, v in w.items()} for w in senders.windows()])
            context = report.context(options, target)
    figures |= ratios(figures, options.nodes)
    figures |= {
        "windows": [{k: v for w in several for k, v in w.items()} for several in zip(*windows, strict=True)],
        "curves": curves,
        **context,
    }
    most = {f"n{offered.nodes}_{name}": 0.0 for offered in layouts for name in NONE}
    for offered in layouts:
        if offered.nodes > 1 and not options.kill:
            most[f"n{offered.nodes}_p99_ms"] = options.budget_p99_ms
    return report.finish(options, figures, most)


def _kills(options: argparse.Namespace, offered: Offered) -> bool:
    return bool(options.kill and offered.nodes > 1)


async def _measure(options: argparse.Namespace, offered: Offered, target: Target, gang: Gang) -> Senders:
    say(f"{offered.nodes} nodes, {offered.rate:g} messages/s, of which {options.cross:.0%} cross")
    target.warm_wal(options.warm_wal_mib)
    parts = shares(offered.connections, offered.rate, options.generators)
    kills = _kills(options, offered)
    senders = await Senders.start(target, gang, parts, cross=options.cross, come_back=kills)
    await senders.warm_up(min(WARMUP_S, options.seconds))
    midway = partial(_kill, target, offered.nodes - 1) if kills else None
    await senders.measure(options.seconds, windows_of(options.seconds), midway=midway)
    return senders


def _kill(target: Target, node: int) -> None:
    say(f"  node {node} is killed")
    target.kill(node)


def ratios(figures: dict[str, Any], nodes: Sequence[int]) -> dict[str, float | None]:
    """CPU a message of each against that of the first; None: it is not known."""
    first, *others = nodes
    to = figures[f"n{first}_cpu_us_per_msg"]
    found = {n: figures[f"n{n}_cpu_us_per_msg"] for n in others}
    return {f"n{n}_to_n{first}": round(of / to, 2) if of and to else None for n, of in found.items()}
