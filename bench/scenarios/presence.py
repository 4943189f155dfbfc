"""Users change their status at a fixed rate: latency until the one peer who watches each has seen it.

N users in N/2 pairs, each watching the other, who have both sent once (or nothing would flow). Changes alternate between away and online; each is
due at a fixed time. A change that the peer had not seen when the next one of that user was due counts as lost, for a push carries the state alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from array import array
from typing import Any

from bench import latency, report, wire
from bench.crowd import Crowd
from bench.pace import Pacer, rounds
from bench.report import say
from bench.scenarios import send
from bench.target import Target

SETTLE_S = 1.0
DRAIN_S = 2.0


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=float, default=200, metavar="R", help="changes a second, all users together (default: 200)")
    parser.add_argument("--connections", type=int, default=1_000, metavar="N", help="users online (default: 1000)")
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help="what is measured (default: 20)")
    parser.add_argument("--budget-p99-ms", type=float, default=250, metavar="MS", help="from due to seen (default: 250)")


class Changes:
    """Who changed to what, when it was due, and when the peer saw it."""

    def __init__(self, crowd: Crowd, n: int) -> None:
        self.crowd = crowd
        self.user_of_name = {name: u for u, name in enumerate(crowd.names)}
        self.who = rounds(crowd.n, n, crowd.rng)
        self.away = [False] * crowd.n
        self.open: dict[int, int] = {}  # user -> the change that is on its way
        self.due_at, self.sent_at, self.seen_at = (array("d", [math.nan]) * n for _ in range(3))
        self.errors = self.unasked = 0
        self.last_v = [0] * crowd.n
        self.reordered = 0

    def fire(self, i: int, due: float) -> None:
        u = self.who[i]
        self.away[u] = not self.away[u]
        self.open[u] = i
        client = self.crowd.clients[u]
        client.write(wire.request("presence", client.next_id, 0x5A5A5A5A, state="away" if self.away[u] else "online"))
        client.next_id += 1
        self.due_at[i], self.sent_at[i] = due, time.perf_counter()

    def on_text(self, user: int, payload: bytes, at: float) -> None:
        frame = json.loads(payload)
        if frame["t"] == "err":
            self.errors += 1
        if frame["t"] != "presence":
            return
        u = self.user_of_name[frame["user"]]
        if frame["v"] <= self.last_v[u]:
            self.reordered += 1
            return
        self.last_v[u] = frame["v"]
        i = self.open.get(u)
        if i is None or self.crowd.peer_of[u] != user or frame["state"] != ("away" if self.away[u] else "online"):
            self.unasked += 1
            return
        del self.open[u]
        self.seen_at[i] = at


async def run(options: argparse.Namespace) -> int:
    n = int(options.rate * options.seconds)
    async with Target(options) as target:
        crowd = Crowd(target, options.connections, options.seed)
        await crowd.connect(hello=lambda u: {"watch": [crowd.names[u ^ 1]]})
        opening = send.Run(crowd, [crowd.n], (20, 20))
        await opening.phase("opening", send.OPENING_RATE, crowd.n)  # its push of the peer's first status is not counted
        for client in crowd.clients:
            client.next_id = crowd.n + 2
        changes = Changes(crowd, n)
        await asyncio.sleep(SETTLE_S)
        crowd.on_text = changes.on_text
        say(f"measured: {n} changes at {options.rate:g}/s among {crowd.n} users")
        cpu, started = target.cpu(), time.perf_counter()
        await Pacer(options.rate, n, changes.fire).run()
        await asyncio.sleep(DRAIN_S)
        used, wall_s = target.cpu().since(cpu), time.perf_counter() - started
        target.check()
        crowd.leave()
        figures = _figures(options, changes, n) | report.costs(used, wall_s, n, target.own)
        figures |= {"dropped": dict(crowd.dropped), "opening": opening.ledger.account(0, crowd.n).lost, **report.context(options, target.settings)}
    return report.finish(options, figures, {"lost": 0.0, "reordered": 0.0, "errors": 0.0, "p99_ms": options.budget_p99_ms})


def _figures(options: argparse.Namespace, changes: Changes, n: int) -> dict[str, Any]:
    seen = [changes.seen_at[i] - changes.due_at[i] if not math.isnan(changes.seen_at[i]) else math.inf for i in range(n)]
    return {
        "rate": options.rate, "connections": options.connections, "seconds": options.seconds,
        "sent": n, "seen": sum(map(math.isfinite, seen)), "lost": sum(map(math.isinf, seen)),
        "reordered": changes.reordered, "errors": changes.errors, "unasked": changes.unasked, **latency.summary(seen),
        "generator_lag_p99_ms": latency.summary(changes.sent_at[i] - changes.due_at[i] for i in range(n))["p99_ms"],
    }  # fmt: skip
