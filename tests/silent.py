"""A connection that nobody listens to: the sink of a session whose answers a test does not look at."""

from __future__ import annotations


class Silent:
    """Implements `core.sink.Sink`."""

    address = "test"
    is_paused = False

    def send(self, frame: bytes) -> None: ...
    def close(self, code: int, reason: str) -> None: ...
    async def drained(self) -> None: ...
