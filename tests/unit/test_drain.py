"""When the clients of a node that drains are asked to reconnect."""

from __future__ import annotations

import pytest

from chatd.drain import NOTICE_MS_MAX, NOTICE_MS_MIN, RESTART_MARGIN, notice_ms


@pytest.mark.parametrize(
    ("connections", "restart_ms", "first_ms", "last_ms"),
    [
        (0, 0.0, 0.0, NOTICE_MS_MIN),
        (1_000, 0.0, 0.0, 1_000.0),
        (1_000_000, 0.0, 0.0, NOTICE_MS_MAX),
        (0, 1_000.0, 1_000.0 * RESTART_MARGIN, 1_000.0 * RESTART_MARGIN + NOTICE_MS_MIN),
        (1_000, 60_000.0, NOTICE_MS_MAX, NOTICE_MS_MAX + 1_000.0),
    ],
)
def test_clients_are_spread_by_their_number_after_the_restart(
    connections: int, restart_ms: float, first_ms: float, last_ms: float
) -> None:
    assert notice_ms(connections, restart_ms) == (first_ms, last_ms)
