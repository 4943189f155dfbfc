"""The rate of a connection's frames, and how long one that exceeds it may stay. Pure.

    take ──► False: over the rate ──► too_many ──► False: refuse the request, after `retry_ms`
                                               └─► True: close the connection

Short bursts over the rate are forgiven; a client that goes on is closed in the end. `now` is an
argument, in seconds.
"""

from __future__ import annotations

from typing import Final

from chatd.core.rate_limit import TokenBucket

THROTTLED_MAX: Final = 1_000  # frames over the rate, as far as they are not forgiven
FORGIVEN_PER_S: Final = 1.0  # a sustained 1 % excess ends in a close
RETRY_MS_MIN: Final = 1_000
RETRY_MS_MAX: Final = 30_000
DOUBLES_EVERY: Final = 100  # frames over the rate


class FrameRate(TokenBucket):
    """Of one connection."""

    __slots__ = ("_throttled_at", "throttled")

    def __init__(self, per_s: float, burst: int) -> None:
        super().__init__(per_s, burst)
        self.throttled = 0.0  # frames over the rate that are not forgiven, at `_throttled_at`
        self._throttled_at = 0.0

    def too_many(self, now: float) -> bool:
        """Count one more frame over the rate; True if the connection must be closed."""
        forgiven = (now - self._throttled_at) * FORGIVEN_PER_S
        self.throttled, self._throttled_at = max(self.throttled - forgiven, 0.0) + 1, now
        return self.throttled > THROTTLED_MAX

    @property
    def retry_ms(self) -> int:
        """When the frame that was refused just now may be sent again."""
        return min(RETRY_MS_MIN << int(self.throttled) // DOUBLES_EVERY, RETRY_MS_MAX)
