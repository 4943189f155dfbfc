"""A node that has all the connections it may have says so: once as it becomes full, and again after a pause.

The metric counts who is refused.
"""

from __future__ import annotations

import math
from typing import Final

import structlog

log = structlog.get_logger("connections")

AGAIN_S: Final = 600.0
ROOM: Final = 0.95  # of the most: a node that wavers about it has become full once


class Crowd:
    """Looked at once a second; `now` is monotonic."""

    __slots__ = ("_is_full", "_most", "_told_at")

    def __init__(self, most: int) -> None:
        self._most = most
        self._is_full = False
        self._told_at = -math.inf

    def look(self, connections: int, now: float) -> None:
        if connections < self._most * ROOM:
            self._is_full = False
        if connections >= self._most and not (self._is_full and now - self._told_at < AGAIN_S):
            self._is_full, self._told_at = True, now
            log.warning(
                "connections.full",
                connections=connections,
                msg="further clients are refused by 503: connections_max, or more nodes",
            )
