"""What is counted, with names and units, for Prometheus.

On the message path a count is `metrics.sends += 1` on a slotted object (30 ns); prometheus_client's
own counters take a lock and cost 0.5 to 1.5 us. The library does what it is good at: exposition,
through a collector that reads these at scrape time. Histograms have buckets that show the budgets
(p95 < 200 ms, p99 < 500 ms, presence <= 1 s).
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from chatd import __version__
from chatd.process_metrics import OwnProcess

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0)
ROWS: Final = (1, 2, 5, 10, 25, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


class Histogram:
    """Counts per bucket; `observe` costs 0.3 us."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        total, out = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            out.append((bound, float(total)))
        return out


# name -> help; every counter is an attribute of Metrics of that name, exported as chatd_NAME_total
COUNTERS: Final = {
    "sends": "sends, edits and deletes that came in",
    "sends_ok": "entries committed and acked",
    "sends_dup": "repeats answered with the first result",
    "sends_err": "sends, edits and deletes answered with an error",
    "deliveries": "entries pushed to sessions",
    "receipts": "receipts pushed to sessions",
    "presence_changes": "presence changes of users",
    "presence_pushes": "presence pushed to sessions",
    "limit_hits": "sends over the rate of their user",
    "frames_throttled": "frames over the frame rate of their connection: requests refused, pings not answered, pongs and fragments",
    "closing_floods": "connections that went on sending after they were closed, and were not read any more",
    "reads_put_off": "times that a connection had more to be read than its share of a turn",
    "typing_merged": "typing not pushed because it was, less than a second ago",
    "presence_merged": "presence changes that were pushed as one with a later one",
    "frames_bad": "frames answered with an error",
    "requests": "requests of all types",
    "connections": "connections accepted",
    "hellos": "hellos answered with a welcome",
    "hellos_limited": "hellos and new tokens refused because their user or address has had too many",
    "reads_refused": "reads refused: too many of their session or user were under way, or too many waited",
    "resyncs": "sessions filled from the log after hello",
    "resync_entries": "entries pushed while filling",
    "gap_fills": "conversations filled from the log because a seq was missing",
    "batches_failed": "batches whose outcome is unknown",
    "batches_retried": "batches repeated after a conflict",
    "slow_consumers": "connections closed because they did not read",
    "heartbeats_lost": "connections closed because nothing was heard from them",
    "publishes": "messages published to other nodes",
    "publishes_lost": "messages to other nodes that were dropped: Redis away or full",
    "bus_messages": "messages that came from other nodes",
    "bus_garbage": "messages on the bus that could not be read, or were of another version",
    "bus_reconnects": "connections to the bus that ended",
    "presence_batches": "batches of presence told to other nodes",
    "presence_gaps": "batches of other nodes' presence that were missed",
    "presence_reads": "presence of another node read again from Redis",
    "lease_failures": "lease renewals that Redis did not take",
    "lease_rewrites": "times that this node's presence was written to Redis anew",
    "leases_lapsed": "other nodes declared dead",
    "quota_calls": "calls to Redis for the limits that nodes share",
    "quota_local": "sends and new conversations judged by this node's own count because Redis was away",
    "feed_reads": "times that the feed was read",
    "feed_rows": "rows of the feed that were read: batches and flushes of all nodes",
    "feed_failed": "readings of the feed that failed",
    "feed_catchups": "times that all users held were looked up because the feed may have been missed",
    "postgres_restarts": "times that the embedded PostgreSQL had ended and was started again, or that was tried",
    "clock_steps": "times that the clock which tokens and last-seen go by was set: PostgreSQL's was, or it runs elsewhere now",
    "partitions_made": "partitions made",
    "partitions_dropped": "partitions dropped",
    "retention_failed": "passes of retention that failed and are tried again",
    "reload_failures": "reloads (SIGHUP) that changed nothing because the key file is wrong",
    "log_lines_dropped": "lines of the log that were left out: too many of one event, or nobody reads the log",
}

# name -> help, labels; each is an attribute of Metrics of that name, a dict from the labels' values
# to a count. The values are of closed sets.
LABELLED: Final = {
    "connections_refused": ("connections that never became a session", ("reason",)),
    "connections_closed": (
        "sessions ended, by why; `code` 0: the connection was lost, or the client's own code",
        ("reason", "code"),
    ),
    "hellos_refused": ("hellos refused", ("code",)),
    "errors": ("requests answered with an error", ("code",)),
}
Counts: TypeAlias = dict[tuple[str, ...], int]


def _count(counts: Counts, *values: str) -> None:
    counts[values] = counts.get(values, 0) + 1


class Metrics(Collector):
    """All series of a node. Gauges are functions, set by `server.py`, read at scrape time."""

    __slots__ = (
        *COUNTERS,
        *LABELLED,
        "failures",
        "commit_s",
        "batch_rows",
        "loop_lag_s",
        "send_s",
        "gauges",
        "infos",
        "registry",
    )

    sends: int
    sends_ok: int
    sends_dup: int
    sends_err: int
    deliveries: int
    receipts: int
    presence_changes: int
    presence_pushes: int
    limit_hits: int
    frames_throttled: int
    closing_floods: int
    reads_put_off: int
    typing_merged: int
    presence_merged: int
    frames_bad: int
    requests: int
    connections: int
    hellos: int
    hellos_limited: int
    reads_refused: int
    resyncs: int
    resync_entries: int
    gap_fills: int
    batches_failed: int
    batches_retried: int
    slow_consumers: int
    heartbeats_lost: int
    publishes: int
    publishes_lost: int
    bus_messages: int
    bus_garbage: int
    bus_reconnects: int
    presence_batches: int
    presence_gaps: int
    presence_reads: int
    lease_failures: int
    lease_rewrites: int
    leases_lapsed: int
    quota_calls: int
    quota_local: int
    feed_reads: int
    feed_rows: int
    feed_failed: int
    feed_catchups: int
    postgres_restarts: int
    clock_steps: int
    partitions_made: int
    partitions_dropped: int
    retention_failed: int
    reload_failures: int
    log_lines_dropped: int
    connections_refused: Counts
    connections_closed: Counts
    hellos_refused: Counts
    errors: Counts

    def __init__(self) -> None:
        for name in COUNTERS:
            setattr(self, name, 0)
        for name in LABELLED:
            setattr(self, name, {})
        self.failures: Mapping[str, int] = {}  # of the database, by kind; the store's own count
        self.commit_s = Histogram(SECONDS)
        self.batch_rows = Histogram(ROWS)
        self.loop_lag_s = Histogram(SECONDS)
        self.send_s = Histogram(SECONDS)
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self.infos: dict[str, tuple[str, dict[str, str]]] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)
        OwnProcess(registry=self.registry)
        self.info(
            "build_info", "the release that runs, always 1", version=__version__, python=platform.python_version()
        )

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """Add a gauge `chatd_NAME`."""
        self.gauges[name] = (help, read)

    def info(self, name: str, help: str, **labels: str) -> None:
        """Add a gauge `chatd_NAME` that is always 1, and says something by its labels."""
        self.infos[name] = (help, labels)

    def closed(self, reason: str, code: int) -> None:
        """A session ended; `reason`: the name of its close code."""
        _count(self.connections_closed, reason, str(code))

    def refused(self, reason: str) -> None:
        """A connection was refused, or ended before it was a session."""
        _count(self.connections_refused, reason)

    def hello_refused(self, code: str) -> None:
        """A hello was answered with this error."""
        _count(self.hellos_refused, code)
        self.error(code)

    def error(self, code: str) -> None:
        """A request was answered with this error."""
        _count(self.errors, code)

    def collect(self) -> Iterable[Metric]:
        for name, help in COUNTERS.items():
            yield CounterMetricFamily(f"chatd_{name}", help, value=getattr(self, name))
        for name, (help, labels) in LABELLED.items():
            family = CounterMetricFamily(f"chatd_{name}", help, labels=labels)
            for values, n in getattr(self, name).items():
                family.add_metric(values, n)
            yield family
        failures = CounterMetricFamily(
            "chatd_database_failures", "what PostgreSQL did not do because of an outage, by kind", labels=["kind"]
        )
        for kind, n in self.failures.items():
            failures.add_metric([kind], n)
        yield failures
        for name, help, h in (
            ("commit_seconds", "one batch: round trip and commit", self.commit_s),
            ("batch_rows", "entries a batch", self.batch_rows),
            ("loop_lag_seconds", "how late the event loop ran a timer", self.loop_lag_s),
            ("send_seconds", "a send from its frame to its ok", self.send_s),
        ):
            yield HistogramMetricFamily(f"chatd_{name}", help, buckets=h.buckets(), sum_value=h.sum)
        for name, (help, read) in self.gauges.items():
            yield GaugeMetricFamily(f"chatd_{name}", help, value=read())

        for name, (help, labelled) in self.infos.items():
            info = GaugeMetricFamily(f"chatd_{name}", help, labels=tuple(labelled))
            info.add_metric(tuple(labelled.values()), 1)
            yield info

    def exposition(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.registry)
