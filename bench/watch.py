"""What a long run looks at: memory, descriptors, threads, prepared statements, gauges, over time;
and whether any of it grows. `growth` and `slope` are pure.

Prepared statements of other sessions cannot be read by SQL: each backend of chatd is asked for its
memory contexts (`pg_log_backend_memory_contexts`, as the superuser that owns the embedded
database), and the plans it keeps are counted in PostgreSQL's log.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import Sequence
from typing import Any, Final

import psycopg

from bench import procs
from bench.target import Target

# What is kept: its children; further down are plans of what runs just now
CACHE: Final = re.compile(r"level: (\d+); CacheMemoryContext: ")
CHILD: Final = re.compile(r"level: (\d+); (?:(CachedPlanSource): |(\d+) more child contexts)")
LOG_S_MAX: Final = 2.0  # until a backend has told


async def watch(target: Target, every_s: float, into: dict[str, list[list[float]]]) -> None:
    """Read all series each `every_s`, into name -> [[seconds, value], ...], until cancelled."""
    started = time.perf_counter()
    n = 0
    while True:
        at = time.perf_counter() - started
        for name, value in {**read(target), **await asyncio.to_thread(_blocking, target)}.items():
            into.setdefault(name, []).append([round(at, 1), value])
        n += 1
        await asyncio.sleep(max(0.0, started + n * every_s - time.perf_counter()))


def read(target: Target) -> dict[str, float]:
    pss, rss = target.memory_kib()
    return {
        "server_pss_mib": round(pss / 1024, 2),
        "server_rss_mib": round(rss / 1024, 2),
        "server_handles": target.handles(),
        "server_threads": sum(procs.threads(node.pid) for node in target.nodes),
    }


def _blocking(target: Target) -> dict[str, float]:
    """What asks others and waits for their answers."""
    with psycopg.connect(target.conninfo, autocommit=True, application_name="chatd bench") as conn:
        return {**{f"gauge_{name}": value for name, value in target.gauges().items()}, **prepared(target, conn)}


def prepared(target: Target, conn: psycopg.Connection[Any]) -> dict[str, float]:
    """Plans that chatd's backends keep (prepared statements, and those of functions), and how many
    backends there are.
    """
    before = target.postgres_log.stat().st_size
    asked = conn.execute(
        "SELECT count(*) FILTER (WHERE pg_log_backend_memory_contexts(pid)) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND application_name LIKE 'chatd%' AND application_name <> 'chatd"
        " bench'"
    ).fetchone()
    assert asked is not None
    until = time.monotonic() + LOG_S_MAX
    while True:
        with target.postgres_log.open("rb") as log:
            log.seek(before)
            said = log.read().decode(errors="replace")
        if said.count("Grand total: ") >= asked[0]:
            return {"postgres_sessions": asked[0], "postgres_plans": count_plans(said)}
        if time.monotonic() > until:
            return {"postgres_sessions": asked[0]}  # a backend at work has not told: no count rather than one too low
        time.sleep(0.01)


def count_plans(said: str) -> int:
    """Of what backends wrote of their memory; beyond a hundred children PostgreSQL only says how
    many more: those count as plans.
    """
    levels = {int(level) + 1 for level in CACHE.findall(said)}
    return sum(1 if plan else int(more) for level, plan, more in CHILD.findall(said) if int(level) in levels)


def last_part(line: Sequence[Sequence[float]], seconds: float) -> list[Sequence[float]]:
    return [at for at in line if at[0] >= line[-1][0] - seconds]


def slope_percent(line: Sequence[Sequence[float]], seconds: float) -> float | None:
    """How much the last part rose from its beginning to its end, by a straight line through it
    (least squares), in percent of its mean.
    """
    part = last_part(line, seconds)
    xs, ys = [at[0] for at in part], [at[1] for at in part]
    if len(part) < 3 or xs[0] == xs[-1]:
        return None
    rise: float = statistics.linear_regression(xs, ys).slope * (xs[-1] - xs[0])
    mean = statistics.fmean(ys)
    return round(100 * rise / mean, 3) if mean else 0.0


def growth(line: Sequence[Sequence[float]], seconds: float) -> float | None:
    """For counts that go up and down by some: the median of the last third of the last part, less
    that of its first third.
    """
    part = last_part(line, seconds)
    if len(part) < 3:
        return None
    third = max(1, len(part) // 3)
    return statistics.median(at[1] for at in part[-third:]) - statistics.median(at[1] for at in part[:third])
