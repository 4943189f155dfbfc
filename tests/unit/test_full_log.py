"""A full node is told of once."""

from __future__ import annotations

from structlog.testing import capture_logs

from chatd.net.full_log import AGAIN_S, Crowd


def test_a_full_node_is_told_of_once_and_again_after_a_pause() -> None:
    crowd = Crowd(100)
    told = []
    for now, connections in enumerate([99, 100, 100, 98, 100, 94, 100]):
        with capture_logs() as logs:
            crowd.look(connections, float(now))
        told.append(len(logs))
    assert told == [0, 1, 0, 0, 0, 0, 1]
    with capture_logs() as logs:
        crowd.look(100, AGAIN_S - 1.0)
        assert logs == []
        crowd.look(100, AGAIN_S + 10.0)
    assert [line["event"] for line in logs] == ["connections.full"]
