"""What a session needs of its connection: `net.connection.ClientConnection`, or a test's. Pure."""

from __future__ import annotations

from typing import Protocol


class Sink(Protocol):
    """What a session needs of its connection."""

    @property
    def address(self) -> str:
        """The client's address."""

    def send(self, frame: bytes) -> None:
        """Queue a whole WebSocket frame, written at the end of the loop turn or soon after."""

    def close(self, code: int, reason: str) -> None:
        """Send what is queued, then close. Idempotent."""

    @property
    def is_paused(self) -> bool:
        """True if the client reads too slowly: read nothing more from the database for it."""

    async def drained(self) -> None:
        """Wait until the output is no longer paused; returns at once if the session has ended."""
