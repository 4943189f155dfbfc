"""A reconnect storm: N clients with unread entries all come back at once; until each has what it missed, once, while others go on sending.

Each client has a conversation with one of N/20 writers. All go; the writers send `--unread` messages to each; then all come back with their cursors.
A client is back when its last missed entry is there: `back_*` counts from the start of the storm, waiting for a turn to dial included. Others, in a
process of their own, send at a fixed rate all the while; their latencies during the storms are `send_*`. Storms are repeated for `compare`, each a
window.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from bench import latency, report
from bench.gang import Gang, Generator, soon
from bench.loads.messages import OPENING_RATE
from bench.report import say
from bench.sending import Senders, shares
from bench.target import Target

EXAMPLES = """\
  python -m bench resync                                    10,000 clients, 5 unread each, once
  python -m bench resync --clients 2000 --storms 3          smaller, three times
  python -m bench resync --at-once 10000                    all dial in the same instant"""
CLIENTS_PER_WRITER = 20
WRITING_RATE = 4_000.0  # of what the clients will have missed, messages a second


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=10_000, metavar="N", help="clients who come back (default: 10000)")
    parser.add_argument("--unread", type=int, default=5, metavar="M", help="entries that each has missed (default: 5)")
    parser.add_argument("--storms", type=int, default=1, metavar="K", help="times that all go and come back (default: 1)")
    parser.add_argument("--at-once", type=int, default=500, metavar="N", help="dialling at the same time (default: 500)")
    parser.add_argument("--beside", type=float, default=500, metavar="R", help="messages a second that others send meanwhile (default: 500)")
    parser.add_argument("--beside-connections", type=int, default=200, metavar="N", help="of those others (default: 200)")
    parser.add_argument("--storm-s", type=float, default=25, metavar="S", help="how long they send from the start of a storm (default: 25)")
    parser.add_argument("--budget-s", type=float, default=20, metavar="S", help="until all are back (default: 20)")
    parser.add_argument("--budget-send-p99-ms", type=float, default=500, metavar="MS", help="of the others' deliveries (default: 500)")


async def run(options: argparse.Namespace) -> int:
    writers = max(1, options.clients // CLIENTS_PER_WRITER)
    async with Target(options) as target, Gang(target, options.seed) as gang:
        crowd = await gang.add("returns", "c", clients=options.clients, writers=writers)
        say(f"{options.clients} clients and {writers} writers come; a message each way between them")
        await crowd.do("connect")
        await crowd.do("open_all", rate=OPENING_RATE)
        others = await Senders.start(target, gang, shares(options.beside_connections, options.beside, 1), tag="o")
        await others.warm_up(1.0)
        windows, back, hello, send, lag = [], latency.Latencies(), latency.Latencies(), latency.Latencies(), latency.Latencies()
        late = latency.Latencies()
        missing, judged = 0, dict.fromkeys(("lost", "duplicated", "reordered", "stray"), 0)
        for storm in range(options.storms):
            await crowd.do("depart")
            say(f"storm {storm + 1}: all are gone; {options.clients * options.unread} messages for them")
            await crowd.do("write", unread=options.unread, rate=WRITING_RATE)
            came, cpu, wall_s = await _storm(options, target, crowd, others)
            missing += came["missing"]
            delivery = others.merged("delivery")
            for total, one in ((back, latency.merged([came["back"]])), (hello, latency.merged([came["hello"]])), (send, delivery)):
                total.merge(one)
            late.merge(others.merged("lag"))
            lag.merge(latency.merged([came["lag"]]))
            windows.append({
                "seconds_to_all": round(came["seconds"], 3), **latency.merged([came["back"]]).figures("back_"), **delivery.figures("send_"),
                **report.each(cpu, options.clients * options.unread, target.own),
            })  # fmt: skip
        facts = await crowd.do("facts")
        for name in judged:
            judged[name] = facts[name] + others.total(name)
        figures: dict[str, Any] = {
            "clients": options.clients, "unread": options.unread, "storms": options.storms,
            "seconds_to_all": max(w["seconds_to_all"] for w in windows), "missing": missing, **judged, "errors": facts["errors"],
            "dropped": facts["dropped"], **back.figures("back_"), **hello.figures("hello_"), **send.figures("send_"),
            "generator_lag_p99_ms": late.at(99), "client_loop_lag_p99_ms": lag.at(99),
            "cores": report.costs(cpu, wall_s, options.clients, target.own)["cores"],
            "windows": windows, "curves": {"back": back.curve(), "hello": hello.curve(), "send": send.curve()}, **report.context(options, target),
        }  # fmt: skip
    most = {"missing": 0.0, **dict.fromkeys(judged, 0.0), "seconds_to_all": options.budget_s, "send_p99_ms": options.budget_send_p99_ms}
    return report.finish(options, figures, most)


async def _storm(options: argparse.Namespace, target: Target, crowd: Generator, others: Senders) -> tuple[dict[str, Any], Any, float]:
    """All come back while the others send; gives what came, and what it cost."""
    await others.prepare(options.storm_s)
    at, cpu = soon(), target.cpu()
    started = time.perf_counter()
    sending = asyncio.ensure_future(others.fire(at))
    came: dict[str, Any] = await crowd.do("come_back", at_once=options.at_once, at=at)
    used, wall_s = target.cpu().since(cpu), time.perf_counter() - started
    say(f"  back in {came['seconds']:.2f} s, {came['missing']} entries missing")
    await sending
    target.check()
    others.facts = [await one.do("facts") for one in others.generators]
    return came, used, wall_s
