"""Users change their status at a fixed rate: latency until each who watches has seen it, of every
push.

N users in N/2 pairs, each watching the other (`--watchers W`: each is watched by W others; `--fan`:
one user changes, all others watch), who have both sent once (or nothing would flow). Changes
alternate between away and online; each is due at a fixed time. A change that a watcher had not seen
when the next one of that user was due counts as lost, for a push carries the state alone. A server
tells a user's changes about once a second: ask for no more. `--beside R` others send messages
meanwhile, from a process of their own: `send_*`. With `--nodes` each user of a pair is at another
node than who watches it. CPU `per_msg` is of a change.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from bench import latency, layout, report
from bench.gang import Gang, soon
from bench.report import say
from bench.sending import NONE, Senders, sample, shares, windows_of
from bench.target import Target, TargetError

EXAMPLES = """\
  python -m bench presence                                            1,000 users in pairs, 200 changes a second
  python -m bench presence --fan --connections 1001 --rate 1          one user's change seen by 1,000 watchers
  python -m bench presence --rate 1000 --watchers 20 --beside 5000    20,000 pushes a second beside 5,000 messages
  python -m bench presence --nodes 8 --rate 800 --connections 8000    100 changes a second at each of 8 nodes"""
OPENING_RATE = 2_000.0


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rate", type=float, default=200, metavar="R", help="changes a second, all users together (default: 200)"
    )
    parser.add_argument("--connections", type=int, default=1_000, metavar="N", help="users online (default: 1000)")
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help="what is measured (default: 20)")
    parser.add_argument(
        "--watchers", type=int, default=1, metavar="W", help="who watch each user: 1, or an even number (default: 1)"
    )
    parser.add_argument("--fan", action="store_true", help="one user changes, all others watch")
    layout.flags(parser)
    parser.add_argument(
        "--beside", type=float, default=0, metavar="R", help="messages a second that others send meanwhile (default: 0)"
    )
    parser.add_argument(
        "--beside-connections", type=int, default=500, metavar="N", help="of those others (default: 500)"
    )
    parser.add_argument(
        "--budget-p99-ms", type=float, default=250, metavar="MS", help="from due to seen (default: 250)"
    )
    parser.add_argument(
        "--budget-send-p95-ms", type=float, default=200, metavar="MS", help="of the others' deliveries (default: 200)"
    )
    parser.add_argument(
        "--budget-send-p99-ms", type=float, default=500, metavar="MS", help="of the others' deliveries (default: 500)"
    )


async def run(options: argparse.Namespace) -> int:
    if not options.fan and (
        options.connections % 2
        or (options.watchers != 1 and options.watchers % 2)
        or options.watchers >= options.connections
    ):
        raise TargetError("--watchers is 1 or an even number below --connections, and --connections is even")
    n, windows = max(1, round(options.rate * options.seconds)), windows_of(options.seconds)
    async with Target(options, nodes=options.nodes) as target, Gang(target, options.seed) as gang:
        crowd = await gang.add(
            "statuses", "p", connections=options.connections, watchers=options.watchers, fan=options.fan
        )
        say(f"{options.connections} users come, and send to whom they watch")
        await crowd.do("connect")
        await crowd.do("open_all", rate=OPENING_RATE)
        others = None
        if options.beside:
            others = await Senders.start(target, gang, shares(options.beside_connections, options.beside, 1), tag="o")
            await others.warm_up()
            await others.prepare(options.seconds)
        await crowd.do("prepare", n=n)
        say(f"measured: {n} changes at {options.rate:g}/s")
        at = soon()
        sampling = asyncio.ensure_future(sample(target, at, options.seconds, windows))
        progress = asyncio.ensure_future(report.tick(options.seconds))
        await asyncio.gather(crowd.do("fire", rate=options.rate, at=at), *([others.fire(at)] if others else []))
        progress.cancel()
        cpu, end, wall_s = await sampling, target.cpu(), time.perf_counter() - at
        target.check()
        facts = await crowd.do("facts", windows=windows)
        figures = _figures(options, facts) | report.costs(end.since(cpu[0]), wall_s, n, target.own)
        figures |= report.parts(end.since(cpu[0]), n) if target.own else {}
        parts: list[dict[str, Any]] = []
        for w, text in enumerate(facts["presence"]):
            seen = latency.merged([text])
            used = report.each(cpu[w + 1].since(cpu[w]), max(1, n // windows), target.own)
            parts.append({**{f"p{p}_ms": seen.at(p) for p in (50, 95, 99)}, **used})
        curves = {"seen": latency.merged(facts["presence"]).curve()}
        if others:
            others.facts = [await one.do("facts", windows=windows) for one in others.generators]
            others.cpu, others.wall_s = [cpu[0], end], wall_s
            mine = others.figures("send_")
            figures |= {name: value for name, value in mine.items() if "cpu" not in name and name != "send_cores"}
            parts = [
                part | {f"send_{k}": v for k, v in w.items() if k.startswith("p")}
                for part, w in zip(parts, others.windows(), strict=True)
            ]
            curves["send"] = others.curves()["delivery"]
        figures |= {"windows": parts, "curves": curves, **report.context(options, target)}
    most = {"lost": 0.0, "reordered": 0.0, "errors_n": 0.0, "p99_ms": options.budget_p99_ms}
    if others:
        most |= {f"send_{name}": 0.0 for name in NONE} | {
            "send_p95_ms": options.budget_send_p95_ms,
            "send_p99_ms": options.budget_send_p99_ms,
        }
    return report.finish(options, figures, most)


def _figures(options: argparse.Namespace, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "rate": options.rate,
        "connections": options.connections,
        "nodes": options.nodes,
        "seconds": options.seconds,
        "watchers": options.connections - 1 if options.fan else options.watchers,
        **{
            name: facts[name]
            for name in ("changes", "due", "seen", "lost", "reordered", "unasked", "errors", "dropped")
        },
        "errors_n": sum(facts["errors"].values()),
        **latency.merged(facts["presence"]).figures(),
        "generator_lag_p99_ms": latency.merged(facts["lag"]).at(99),
    }
