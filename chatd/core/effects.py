"""What `Session.receive` makes of a payload, for chat to carry out. Pure.

Request       allowed now: do what it asks (chat/handlers.py)
Reply, End    decided by the session alone
Throttled     a request over the rate of frames: refuse it
None          nothing to do: it waits for the welcome, or the session has ended
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from chatd.errors import CloseCode
from chatd.protocol import Request


class Reply(NamedTuple):
    """Answer with this payload, an error of this code."""

    frame: bytes
    code: str


class End(NamedTuple):
    """Answer with this payload, if any, and close the connection."""

    frame: bytes | None
    code: CloseCode
    reason: str


TOO_FAST: Final = End(None, CloseCode.RATE_LIMITED, "kept sending too many frames a second")


class Throttled(NamedTuple):
    """Too many frames a second: refuse this request.

    A refused entry blocks its conversation, so that later ones do not overtake it.
    """

    request: Request
    retry_ms: int


Effect: TypeAlias = Request | Reply | End | Throttled | None
