"""Percentiles of latencies. Pure, and exact: all values are kept, in 8 bytes each.

A histogram of HDR kind would round to its buckets, and costs 2 us a value in Python; a run has some million values at most, which fit in memory.
A message that never came counts as infinitely late, so that losing the slow ones cannot make the figures better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

FIGURES = ((50.0, "p50_ms"), (95.0, "p95_ms"), (99.0, "p99_ms"), (99.9, "p999_ms"), (100.0, "max_ms"))


def percentile(ordered: list[float], p: float) -> float:
    """The smallest value that at least p percent of all are not above (nearest rank); NaN if there is none."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * p / 100 - 1e-9) - 1)]


def summary(latencies_s: Iterable[float], prefix: str = "") -> dict[str, float | None]:
    """Percentiles in milliseconds, named as the report has them; None: that many never came, or there was nothing."""
    ordered = sorted(latencies_s)
    figures = {}
    for p, name in FIGURES:
        value = percentile(ordered, p) * 1000
        figures[prefix + name] = round(value, 3) if math.isfinite(value) else None
    return figures
