"""A measured phase of messages: who sends how much, the orders to the generators, CPU window by
window, and the figures of it all.

Several scenarios have messages as their subject or beside it; all of them send by this file and are
judged alike.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bench import latency, report
from bench.gang import Gang, Generator, everybody, soon
from bench.latency import Latencies
from bench.loads.messages import OPENING_RATE
from bench.procs import Cpu
from bench.report import say
from bench.target import Target, TargetError

WARMUP_S: Final = 3.0
WINDOWS_MAX: Final = 10
NONE: Final = {"lost": 0.0, "duplicated": 0.0, "reordered": 0.0, "stray": 0.0}  # the budget of what must not happen


def windows_of(seconds: float) -> int:
    """As many as give a second or more to each: noise is told by how they differ (see
    `bench.compare`).
    """
    return max(1, min(WINDOWS_MAX, int(seconds)))


def even(n: float) -> int:
    return max(2, int(n) // 2 * 2)


@dataclass(frozen=True, slots=True)
class Share:
    """What one generator does of the whole."""

    connections: int
    rate: float
    hot: float


def shares(connections: int, rate: float, generators: int, hot: float = 0.0, devices: int = 1) -> list[Share]:
    """Users go to the generators in equal parts, whole pairs; a hot pair is at the first one, with
    what it sends.
    """
    unit = 2 * devices
    pairs = [
        connections // unit * (g + 1) // generators - connections // unit * g // generators for g in range(generators)
    ]
    if min(pairs) < 1:
        raise TargetError(
            f"--connections: {connections} are too few for {generators} generators with {devices} devices a user; give"
            " more"
        )
    rates = [rate * (1 - hot) * p / sum(pairs) for p in pairs]
    rates[0] += rate * hot
    return [
        Share(p * unit, r, rate * hot / r if g == 0 and hot else 0.0)
        for g, (p, r) in enumerate(zip(pairs, rates, strict=True))
    ]


@dataclass(slots=True)
class Senders:
    """The generators that send, each at its rate."""

    target: Target
    generators: list[Generator]
    shares: list[Share]
    facts: list[dict[str, Any]] = field(default_factory=list)
    cpu: list[Cpu] = field(default_factory=list)  # at the windows' edges, and after the drain
    wall_s: float = 0.0

    @classmethod
    async def start(
        cls, target: Target, gang: Gang, parts: Sequence[Share], *, tag: str = "s", **options: Any
    ) -> Senders:
        """Connect everybody and make the conversations; those of contacts are there."""
        generators = [await gang.add("messages", tag, connections=p.connections, hot=p.hot, **options) for p in parts]
        say(f"{sum(p.connections for p in parts)} connections come, with {len(generators)} generators")
        await everybody(generators, "connect")
        total = sum(p.connections for p in parts)
        if not options.get("contacts"):
            await asyncio.gather(
                *(
                    g.do("open_all", rate=OPENING_RATE * p.connections / total)
                    for g, p in zip(generators, parts, strict=True)
                )
            )
        return cls(target, generators, list(parts))

    @property
    def rate(self) -> float:
        return sum(p.rate for p in self.shares)

    async def warm_up(self, seconds: float = WARMUP_S) -> None:
        if seconds > 0:
            await self._send(seconds, soon())

    async def measure(
        self, seconds: float, windows: int, *, churn: float = 0.0, midway: Callable[[], None] | None = None
    ) -> None:
        """`churn`: the share of connections that go and come back each second; `midway` is called at
        half of the time.
        """
        say(f"measured: {self.rate:g} messages/s for {seconds:g} s")
        await self.prepare(seconds)
        at = soon()
        if midway is not None:
            asyncio.get_running_loop().call_later(at + seconds / 2 - time.perf_counter(), midway)
        sampling = asyncio.ensure_future(sample(self.target, at, seconds, windows))
        progress = asyncio.ensure_future(report.tick(seconds))
        try:
            await self.fire(at, churn)
            self.cpu = [*await sampling, self.target.cpu()]
        finally:
            sampling.cancel()
            progress.cancel()
        self.wall_s = time.perf_counter() - at
        self.target.check()
        self.facts = await everybody(self.generators, "facts", windows=windows)

    async def prepare(self, seconds: float) -> None:
        await asyncio.gather(
            *(
                g.do("prepare", n=max(1, round(p.rate * seconds)))
                for g, p in zip(self.generators, self.shares, strict=True)
            )
        )

    async def fire(self, at: float, churn: float = 0.0) -> None:
        await asyncio.gather(
            *(
                g.do("fire", rate=p.rate, at=at, churn_per_s=churn * p.connections)
                for g, p in zip(self.generators, self.shares, strict=True)
            )
        )

    async def _send(self, seconds: float, at: float) -> None:
        await self.prepare(seconds)
        await self.fire(max(at, soon()))

    async def leave(self) -> None:
        await everybody(self.generators, "leave")

    # ---- figures ---------------------------------------------------------------------------------

    def merged(self, name: str) -> Latencies:
        return latency.merged(
            text for fact in self.facts for text in ([fact[name]] if isinstance(fact[name], str) else fact[name])
        )

    def total(self, name: str) -> int:
        return sum(int(fact[name]) for fact in self.facts)

    def counter(self, name: str) -> dict[str, int]:
        found: Counter[str] = Counter()
        for fact in self.facts:
            found.update(fact[name])
        return dict(found)

    def figures(self, prefix: str = "") -> dict[str, Any]:
        """All about the measured phase."""
        sent = self.total("sent")
        used = self.cpu[-1].since(self.cpu[0])
        last = max(fact["last_delivery"] for fact in self.facts) - min(fact["first_due"] for fact in self.facts)
        figures = {
            **{
                name: self.total(name)
                for name in ("sent", "acked", "delivered", "lost", "duplicated", "reordered", "stray")
            },
            "errors": self.counter("errors"),
            "dropped": self.counter("dropped"),
            **self.merged("delivery").figures(),
            **self.merged("ack").figures("ack_"),
            "delivered_per_s": round(self.total("delivered") / max(last, 1e-9), 1),
            "generator_lag_p99_ms": self.merged("lag").at(99),
            **report.costs(used, self.wall_s, sent, self.target.own),
        }
        counts = self.counter("counts")
        if counts:
            cursor = self.merged("cursor")
            figures |= {
                "requests": counts,
                "unanswered": self.total("unanswered"),
                "cursor_p50_ms": cursor.at(50),
                "cursor_p99_ms": cursor.at(99),
            }
        return {prefix + name: value for name, value in figures.items()}

    def returns(self, prefix: str = "") -> dict[str, Any]:
        """Of connections that came back."""
        back = self.merged("return")
        return {
            f"{prefix}returns": back.n,
            f"{prefix}return_p50_ms": back.at(50),
            f"{prefix}return_p99_ms": back.at(99),
        }

    def parts(self, prefix: str = "") -> dict[str, Any]:
        return report.parts(self.cpu[-1].since(self.cpu[0]), self.total("sent"), prefix)

    def windows(self) -> list[dict[str, Any]]:
        """The same, window by window, for plots and for `compare`."""
        n = len(self.facts[0]["delivery"])
        found = []
        for w in range(n):
            delivery = latency.merged(fact["delivery"][w] for fact in self.facts)
            ack = latency.merged(fact["ack"][w] for fact in self.facts)
            lag = latency.merged(fact["lag"][w] for fact in self.facts)
            costs = (
                report.each(self.cpu[w + 1].since(self.cpu[w]), delivery.n, self.target.own)
                if len(self.cpu) > n
                else {}
            )
            found.append(
                {
                    "p50_ms": delivery.at(50),
                    "p95_ms": delivery.at(95),
                    "p99_ms": delivery.at(99),
                    "ack_p50_ms": ack.at(50),
                    "ack_p99_ms": ack.at(99),
                    "generator_lag_p99_ms": lag.at(99),
                    **costs,
                }
            )
        return found

    def curves(self) -> dict[str, list[list[float]]]:
        return {"delivery": self.merged("delivery").curve(), "ack": self.merged("ack").curve()}


async def sample(target: Target, at: float, seconds: float, windows: int) -> list[Cpu]:
    """CPU at the edges of the windows."""
    found = []
    for w in range(windows + 1):
        await asyncio.sleep(max(0.0, at + seconds * w / windows - time.perf_counter()))
        found.append(target.cpu())
    return found


def flags(parser: argparse.ArgumentParser, *, rate: float, connections: int, seconds: float) -> None:
    """Flags of a scenario whose subject is messages between pairs."""
    parser.add_argument(
        "--rate",
        type=float,
        default=rate,
        metavar="R",
        help=f"messages a second, all users together (default: {rate:g})",
    )
    parser.add_argument(
        "--connections",
        type=int,
        default=connections,
        metavar="N",
        help=f"connections, in pairs of users (default: {connections})",
    )
    parser.add_argument(
        "--seconds", type=float, default=seconds, metavar="S", help=f"what is measured (default: {seconds:g})"
    )
    parser.add_argument(
        "--warm-wal-mib",
        type=int,
        default=64,
        metavar="MIB",
        help="WAL written first, so that its segments lie ready (default: 64)",
    )
    parser.add_argument(
        "--generators", type=int, default=1, metavar="G", help="processes that make the load (default: 1)"
    )
