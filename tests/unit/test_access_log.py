"""What strangers can cause in the log is bounded; what is left out is counted and told."""

from __future__ import annotations

from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from chatd.core.session import Session
from chatd.metrics import Metrics
from chatd.net.access_log import CROWD, KEY_REMOVED, STRANGERS_BURST, AccessLog

BOOT = "0123456789abcdef"


def access_log(*, names_proxies: bool = False) -> tuple[AccessLog, Metrics]:
    metrics = Metrics()
    return AccessLog(metrics, BOOT, lambda: 0.0, names_proxies=names_proxies), metrics


def test_a_flood_of_refusals_fills_no_log() -> None:
    log, metrics = access_log()
    with capture_logs() as lines:
        for _ in range(1_000):
            log.refused("connections_per_address_max", "203.0.113.7", now=0.0)
        log.refused("draining", "203.0.113.7", now=60.0)
        log.refused("left", "", now=61.0)
    assert len(lines) == STRANGERS_BURST + 1
    assert lines[0] == {
        "event": "connection.refused",
        "log_level": "info",
        "reason": "connections_per_address_max",
        "address": "203.0.113.7",
    }
    assert lines[-1]["left_out"] == 1_000 - STRANGERS_BURST == metrics.log_lines_dropped
    assert metrics.connections_refused == {("connections_per_address_max",): 1_000, ("draining",): 1, ("left",): 1}


@pytest.mark.parametrize(
    ("code", "name", "counted"),
    [(0, "lost", "0"), (1012, "restart", "1012"), (4006, "slow_consumer", "4006"), (4999, "other", "0")],
)
def test_an_end_tells_who_from_where_how_long_and_why(code: int, name: str, counted: str) -> None:
    log, metrics = access_log()
    session = Session(cast("Any", None), cast("Any", None), 0.0)
    with capture_logs() as lines:
        log.closed(session, 7, "203.0.113.7", code, "why", since=10.0, now=12.5, bytes_in=3, bytes_out=4)
    assert lines == [
        {
            "event": "session.closed",
            "log_level": "info",
            "id": "01234567-7",
            "user": None,
            "device": None,
            "address": "203.0.113.7",
            "code": code or None,
            "name": name,
            "reason": "why",
            "duration_s": 2.5,
            "bytes_in": 3,
            "bytes_out": 4,
        }
    ]
    assert metrics.connections_closed == {(name, counted): 1}


def test_an_end_by_a_removed_key_is_counted_apart_from_a_refused_token() -> None:
    log, metrics = access_log()
    session = Session(cast("Any", None), cast("Any", None), 0.0)
    for reason in (KEY_REMOVED, "unauthorized"):
        log.closed(session, 7, "203.0.113.7", 4001, reason, since=10.0, now=12.5, bytes_in=3, bytes_out=4)
    assert metrics.connections_closed == {("key_removed", "4001"): 1, ("unauthorized", "4001"): 1}


@pytest.mark.parametrize(
    ("address", "n", "limit", "names_proxies", "warned"),
    [
        ("127.0.0.1", CROWD, 10_000, False, True),
        ("10.0.0.1", 3, 2, False, True),
        ("10.0.0.1", CROWD - 1, 10_000, False, False),
        ("10.0.0.1", CROWD, 10_000, True, False),
        ("8.8.8.8", CROWD, 2, False, False),
    ],
)
def test_a_crowd_from_one_private_address_is_told_once(
    address: str, n: int, limit: int, names_proxies: bool, warned: bool
) -> None:
    log, _ = access_log(names_proxies=names_proxies)
    with capture_logs() as lines:
        log.counted(address, n, limit)
        log.counted(address, n, limit)
    assert [line["setting"] for line in lines] == ["trusted_proxies"] * warned
