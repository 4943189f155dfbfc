"""The heartbeat: a silent client is pinged, and closed if it does not answer.

    silent for PING_AT of `heartbeat_ms` ──► ping ──► heard again
                                               └────► silent still: closed as lost, or as one that
                                                      does not read

A client whose token has ended is closed by the same check, once a second (`Listener.sweep`).
Any byte from the client counts as a sign of life. While its output is paused nothing is read, so
that it takes output counts, too. Nobody is lost without having been pinged, however late the sweep
comes.
"""

from __future__ import annotations

from typing import Final

from chatd.core.session import State
from chatd.errors import CloseCode
from chatd.metrics import Metrics
from chatd.net.connection import ClientConnection
from chatd.wire.frames import encode_ping

SWEEP_S: Final = 1.0
PING_AT: Final = 0.4  # of the heartbeat without a byte: a ping is sent
LOST_AT: Final = 0.8  # of a heartbeat too short for a sweep's delay


class Heartbeat:
    """Of all connections of a node. `heartbeat_s`: the setting `heartbeat_ms`, in seconds."""

    def __init__(self, heartbeat_s: float, metrics: Metrics) -> None:
        self._ping_s = heartbeat_s * PING_AT
        self._lost_s = max(heartbeat_s - SWEEP_S, heartbeat_s * LOST_AT)
        self._metrics = metrics

    def check(self, connection: ClientConnection, now: float, now_ms: int) -> None:
        """Check a connection that is open; to be called about once a second.

        `now` in seconds, `now_ms` since 1970.
        """
        if not connection.takes and _has_taken(connection):
            connection.heard_at = now
        silent = now - connection.heard_at
        if silent > self._ping_s:
            if connection.pinged_at <= connection.heard_at:  # also after a late sweep
                connection.pinged_at = now
                connection.send(encode_ping(b""))
            # The client gets time to answer even if another sweep follows a late one at once.
            elif silent > self._lost_s and now - connection.pinged_at > SWEEP_S / 2:
                self._lost(connection)
                return
        session = connection.session
        if session is not None and session.state is State.LIVE and now_ms >= session.exp_ms:
            connection.close(CloseCode.TOKEN_EXPIRED, "the token has ended")

    def _lost(self, connection: ClientConnection) -> None:
        if connection.takes:
            self._metrics.heartbeats_lost += 1
            connection.close(CloseCode.HEARTBEAT, "nothing heard")
        else:
            connection.close_unread()


def _has_taken(connection: ClientConnection) -> bool:
    """Whether a paused client has read something since the last check, however little."""
    was, connection.unwritten_before = connection.unwritten_before, connection.unwritten
    return connection.unwritten_before < was
