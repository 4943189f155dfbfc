"""Logs that a node has all the connections it may have: once when it is full, again after a pause.

Refused connections are counted by the metric.
"""

from __future__ import annotations

import math
from typing import Final

import structlog

log = structlog.get_logger("connections")

AGAIN_S: Final = 600.0
ROOM: Final = 0.95  # of the bound: a node that varies around the bound becomes full only once


class Crowd:
    """Call `look` once a second; `now` is monotonic, in seconds."""

    __slots__ = ("_is_full", "_logged_at", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._is_full = False
        self._logged_at = -math.inf

    def look(self, connections: int, now: float) -> None:
        if connections < self._most * ROOM:
            self._is_full = False
        if connections >= self._most and not (self._is_full and now - self._logged_at < AGAIN_S):
            self._is_full, self._logged_at = True, now
            log.warning(
                "connections.full",
                connections=connections,
                msg="further clients are refused by 503: connections_max, or more nodes",
            )
