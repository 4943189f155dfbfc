"""Counts are attributes by the names of their series, and Prometheus reads what they are."""

from __future__ import annotations

import pytest

from chatd.metrics import COUNTERS, LABELLED, Histogram, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_every_counter_is_an_attribute_of_its_name(metrics: Metrics) -> None:
    for n, name in enumerate(COUNTERS):
        setattr(metrics, name, n + 1)
    text = metrics.exposition().decode()
    for n, name in enumerate(COUNTERS):
        assert f"\nchatd_{name}_total {float(n + 1)}\n" in text
    for name in LABELLED:
        assert getattr(metrics, name) == {}


def test_a_misspelt_counter_is_an_error(metrics: Metrics) -> None:
    with pytest.raises(AttributeError):
        metrics.sendz += 1  # type: ignore[attr-defined]


def test_labels(metrics: Metrics) -> None:
    metrics.closed("restart", 1012)
    metrics.closed("restart", 1012)
    metrics.refused("origin")
    metrics.hello_refused("unauthorized")
    text = metrics.exposition().decode()
    assert 'chatd_connections_closed_total{code="1012",reason="restart"} 2.0' in text
    assert 'chatd_connections_refused_total{reason="origin"} 1.0' in text
    assert 'chatd_hellos_refused_total{code="unauthorized"} 1.0' in text
    assert 'chatd_errors_total{code="unauthorized"} 1.0' in text, "an error like any other"


def test_gauges_are_read_when_they_are_asked_for(metrics: Metrics) -> None:
    now = [1.0]
    metrics.gauge("lanes_now", "lanes", lambda: now[0])
    metrics.info("shape_info", "always 1", shape="round")
    now[0] = 7.0
    text = metrics.exposition().decode()
    assert "chatd_lanes_now 7.0" in text
    assert 'chatd_shape_info{shape="round"} 1.0' in text


def test_a_histogram_counts_up_to_and_with_each_bound() -> None:
    one = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 3.0):
        one.observe(value)
    assert one.buckets() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert one.sum == 6.0
