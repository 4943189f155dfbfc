"""Messages between pairs at a fixed rate: latency from the time due, and what became of each.

N users in N/2 pairs, all of them sending, in rounds of a shuffled order. First each user sends once (which makes the conversations), then a
warm-up at the rate, then the window that is measured; each phase is drained before the next. Losses and disorder count in all phases.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from typing import Any, Final

from bench import latency, report, wire
from bench.crowd import Crowd
from bench.ledger import Ledger
from bench.pace import Pacer, rounds
from bench.report import say
from bench.target import Target

OPENING_RATE: Final = 1_000.0  # first messages a second: each makes a conversation
WARMUP_S: Final = 3.0
DRAIN_S_MAX: Final = 10.0
PROGRESS_S: Final = 5.0


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=float, default=2_000, metavar="R", help="messages a second, all users together (default: 2000)")
    parser.add_argument("--connections", type=int, default=500, metavar="N", help="users, one connection each (default: 500)")
    parser.add_argument("--seconds", type=float, default=30, metavar="S", help="what is measured (default: 30)")
    parser.add_argument("--body-min", type=int, default=100, metavar="BYTES")
    parser.add_argument("--body-max", type=int, default=200, metavar="BYTES")
    parser.add_argument("--budget-p95-ms", type=float, default=200, metavar="MS", help="of delivery (default: 200)")
    parser.add_argument("--budget-p99-ms", type=float, default=500, metavar="MS", help="of delivery (default: 500)")


class Run:
    """All messages of a run, their frames made beforehand, and the ledger of them."""

    def __init__(self, crowd: Crowd, phases: list[int], body: tuple[int, int]) -> None:
        self.crowd = crowd
        n = sum(phases)
        self.sender = rounds(crowd.n, n, crowd.rng)
        self.ledger = Ledger(self.sender, crowd.peer_of)
        self.errors: Counter[str] = Counter()
        self.first = 0
        self.changed = asyncio.Event()
        rng, run = crowd.rng, crowd.run
        self.frames = [
            wire.message(k, k + 2, crowd.names[u ^ 1], run, rng.randint(*body), rng.getrandbits(32)) for k, u in enumerate(self.sender)
        ]  # the id is k + 2: it rises on each connection, and an `ok` tells k
        crowd.on_text = self.on_text

    def on_text(self, user: int, payload: bytes, at: float) -> None:
        if (ok := wire.read_ok(payload)) is not None:
            self.ledger.acked(user, ok[0] - 2, ok[1], at, ok[2])
        elif (entry := wire.read_entry(payload)) is not None:
            self.ledger.delivered(user, entry[0], entry[1], at)
        else:
            frame = json.loads(payload)
            if frame["t"] == "err":
                self.errors[frame["code"]] += 1
            else:
                self.errors["unexpected " + frame["t"]] += 1

    def fire(self, i: int, due: float) -> None:
        ledger, k = self.ledger, self.first + i
        self.crowd.clients[self.sender[k]].write(self.frames[k])
        ledger.due_at[k] = due
        ledger.sent_at[k] = time.perf_counter()

    async def phase(self, name: str, rate: float, n: int) -> None:
        """Send the next n messages, and wait until all have come through or the drain is over."""
        say(f"{name}: {n} messages at {rate:g}/s")
        progress = asyncio.ensure_future(self._progress())
        await Pacer(rate, n, self.fire).run()
        self.first += n
        until = time.perf_counter() + DRAIN_S_MAX
        while min(self.ledger.acks, self.ledger.deliveries) < self.first and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        progress.cancel()

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            ledger = self.ledger
            say(f"  acked {ledger.acks}, delivered {ledger.deliveries}, errors {dict(self.errors)}, dropped {dict(self.crowd.dropped)}")


async def run(options: argparse.Namespace) -> int:
    n, warm = int(options.rate * options.seconds), int(options.rate * min(WARMUP_S, options.seconds))
    async with Target(options) as target:
        crowd = Crowd(target, options.connections, options.seed)
        await crowd.connect()
        say(f"{crowd.n} users are connected; making {crowd.n + warm + n} frames")
        work = Run(crowd, [crowd.n, warm, n], (options.body_min, options.body_max))
        await work.phase("opening", min(OPENING_RATE, options.rate), crowd.n)
        await work.phase("warm-up", options.rate, warm)
        cpu, started = target.cpu(), time.perf_counter()
        await work.phase("measured", options.rate, n)
        used, wall_s = target.cpu().since(cpu), time.perf_counter() - started
        target.check()
        crowd.leave()
        figures = _figures(options, work, crowd.n + warm, n) | report.costs(used, wall_s, n, target.own)
        figures |= {"dropped": dict(crowd.dropped), "server_log_lines": target.complaints, **report.context(options, target.settings)}
    none = {"lost": 0.0, "duplicated": 0.0, "reordered": 0.0, "stray": 0.0}
    return report.finish(options, figures, {**none, "p95_ms": options.budget_p95_ms, "p99_ms": options.budget_p99_ms})


def _figures(options: argparse.Namespace, work: Run, first: int, n: int) -> dict[str, Any]:
    ledger = work.ledger
    window, whole = ledger.account(first, n), ledger.account(0, ledger.n)
    last = max((at for at in ledger.deliveries_at[first:] if at == at), default=0.0)
    return {
        "rate": options.rate, "connections": options.connections, "seconds": options.seconds,
        "sent": window.sent, "acked": window.acked, "delivered": window.delivered,
        "lost": whole.lost, "duplicated": whole.duplicated, "reordered": whole.reordered, "stray": whole.stray, "errors": dict(work.errors),
        **latency.summary(ledger.latencies(first, n, ledger.deliveries_at)),
        **latency.summary(ledger.latencies(first, n, ledger.acked_at), "ack_"),
        "delivered_per_s": round(window.delivered / max(last - ledger.due_at[first], 1e-9), 1),
        "generator_lag_p99_ms": latency.summary(ledger.lags(first, n))["p99_ms"],
    }  # fmt: skip
