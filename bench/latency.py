"""Latencies in an HDR histogram:

1 us to 1 h, three significant digits, the same size for a thousand values and for a billion.

A histogram travels as text (HdrHistogram's own V2 encoding, which its tools in any language read),
so that generators in several processes can be added up exactly; percentiles of percentiles would be
wrong. What never came counts as an hour late, so that losing the slow ones cannot make the figures
better. Values are counted by whole microseconds first: recording each alone costs 2 us.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from hdrh.histogram import HdrHistogram

FIGURES: Final = ((50.0, "p50_ms"), (95.0, "p95_ms"), (99.0, "p99_ms"), (99.9, "p999_ms"), (100.0, "max_ms"))
US_MAX: Final = 3_600_000_000
DIGITS: Final = 3
# Of a plot: dense where the tail is, each step halves what is left above.
CURVE: Final = tuple(sorted({*range(0, 91, 5), *(100 - 100 / 2**n for n in range(1, 21)), 95, 99, 99.9, 99.99, 100}))


class Latencies:
    """`add` values in seconds, `merge` others, then ask."""

    __slots__ = ("_histogram",)

    def __init__(self, values_s: Iterable[float] = ()) -> None:
        self._histogram: Any = HdrHistogram(1, US_MAX, DIGITS)
        self.add(values_s)

    def add(self, values_s: Iterable[float]) -> None:
        """`inf` never came."""
        counted = Counter(US_MAX if value * 1e6 >= US_MAX else max(0, round(value * 1e6)) for value in values_s)
        for us, n in counted.items():
            assert self._histogram.record_value(us, n), us

    def merge(self, other: Latencies) -> None:
        self._histogram.add(other._histogram)

    @property
    def n(self) -> int:
        return int(self._histogram.total_count)

    def at(self, percent: float) -> float | None:
        """Milliseconds that so many of the values are not above; None: so many never came, or there
        is nothing.
        """
        return self._several([percent])[percent]

    def _several(self, percents: Iterable[float]) -> dict[float, float | None]:
        percents = list(percents)
        if not self.n:
            return dict.fromkeys(percents)
        found = self._histogram.get_percentile_to_value_dict(percents)
        lost = self._histogram.get_lowest_equivalent_value(US_MAX)
        return {p: None if found[p] >= lost else round(found[p] / 1000, 3) for p in percents}

    def figures(self, prefix: str = "") -> dict[str, float | None]:
        """Percentiles in milliseconds, named as the report has them."""
        found = self._several(p for p, _ in FIGURES)
        return {prefix + name: found[p] for p, name in FIGURES}

    def curve(self) -> list[list[float]]:
        """[percent, milliseconds] for a plot, up to what came; [] if there is nothing.

        Ends where one value is less than a step.
        """
        found = self._several(CURVE)
        most = 100 * (1 - 1 / self.n) if self.n else 0.0
        return [[round(p, 6), ms] for p, ms in found.items() if ms is not None and (p <= most or p == 100)]

    def text(self) -> str:
        return str(self._histogram.encode().decode())

    @classmethod
    def read(cls, text: str) -> Latencies:
        """The opposite of `text`."""
        latencies = cls()
        latencies._histogram.decode_and_add(text)
        return latencies


def summary(latencies_s: Iterable[float], prefix: str = "") -> dict[str, float | None]:
    return Latencies(latencies_s).figures(prefix)


def merged(texts: Iterable[str]) -> Latencies:
    """The sum of histograms that came as text."""
    total = Latencies()
    for text in texts:
        total.merge(Latencies.read(text))
    return total


def finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]
