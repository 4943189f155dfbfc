"""Who is pinged, and who is lost.

What a client sees of it is tested over real sockets (tests/integration, tests/faults).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final, cast

import pytest

from chatd.net.connection import ClientConnection
from chatd.net.flow_control import Phase
from chatd.net.heartbeat import Heartbeat
from chatd.wire.frames import encode_ping

HEARTBEAT_S: Final = 2.0  # pinged after 0.8 s, lost after 1.6 s


def test_nobody_is_lost_unasked_however_late_the_sweep_comes() -> None:
    metrics = SimpleNamespace(heartbeats_lost=0)
    shared = SimpleNamespace(unauthenticated=None, to_flush=lambda _: None, flush_bytes=1_000, metrics=metrics)
    connection = cast("Any", ClientConnection(cast("Any", shared)))
    connection._phase, connection.heard_at = Phase.OPEN, 100.0
    heartbeat = Heartbeat(HEARTBEAT_S, cast("Any", metrics))
    heartbeat.check(connection, 100.7, 0)
    assert connection._out == []
    heartbeat.check(connection, 101.7, 0)  # past both at once
    assert (connection._out, metrics.heartbeats_lost) == ([encode_ping(b"")], 0)
    heartbeat.check(connection, 101.8, 0)  # the sweep catches up
    assert metrics.heartbeats_lost == 0
    heartbeat.check(connection, 102.7, 0)
    assert metrics.heartbeats_lost == 1


def test_who_answers_every_ping_stays_however_short_the_heartbeat() -> None:
    # To be lost would need more of it
    shared = SimpleNamespace(unauthenticated=None, to_flush=lambda _: None, flush_bytes=1_000_000)
    connection = cast("Any", ClientConnection(cast("Any", shared)))
    connection._phase, connection.heard_at = Phase.OPEN, 100.0
    heartbeat = Heartbeat(HEARTBEAT_S, cast("Any", None))
    for second in range(1, 60):
        before = len(connection._out)
        heartbeat.check(connection, 100.0 + second, 0)
        if len(connection._out) > before:
            connection.heard_at = 100.001 + second
    assert len(connection._out) == 59


def test_who_takes_what_it_gets_is_not_lost_however_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """While its output is paused no pong is read; that the kernel takes bytes for it shows that it is there.

    Who takes nothing is lost.
    """
    metrics = SimpleNamespace(heartbeats_lost=0, slow_consumers=0)
    shared = SimpleNamespace(unauthenticated=None, to_flush=lambda _: None, flush_bytes=1_000_000, metrics=metrics)
    connection, left = cast("Any", ClientConnection(cast("Any", shared))), 100_000
    connection._phase, connection.heard_at, connection._paused = Phase.OPEN, 100.0, True
    heartbeat = Heartbeat(HEARTBEAT_S, cast("Any", metrics))
    connection._transport = SimpleNamespace(get_write_buffer_size=lambda: left)
    for second in range(1, 20):
        heartbeat.check(connection, 100.0 + second, 0)
        left -= 10
    assert metrics.slow_consumers == 0
    monkeypatch.setattr(ClientConnection, "close", lambda *_: None)
    for second in range(20, 24):
        heartbeat.check(connection, 100.0 + second, 0)
    assert metrics.slow_consumers > 0
