"""What the Python client raises, in one tree below `chatd.errors.ChatdError`.

    ClientError
    ├── RequestError      the server refused this request (section 9 of docs/protocol.md)
    ├── ConnectionLost    one connection ended (`Connection` raises it; `Client` reconnects)
    ├── ProtocolError     the other side does not speak chatd.v1
    ├── OutboxFull        too much waits to be sent already
    ├── EpochChanged      the log was restored from a backup, without the message of this change
    ├── NoToken           raised by *your* token callable: there is none, do not ask again
    └── Stopped           the client has ended and does not reconnect: `reason`, `close_code`
        └── Closed        because `close()` was called

A send that raises RequestError is not in the log and never will be. Stopped says nothing of the
kind: what was on its way may be in the log, and `Client.state()` still holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chatd.errors import ChatdError


class ClientError(ChatdError):
    """Root of what the client raises."""


class RequestError(ClientError):
    """An `err` in answer to one request. `str()` is its code and the server's sentence."""

    def __init__(
        self, code: str, msg: str = "", *, retry_ms: int | None = None, field: str | None = None, cid: str | None = None
    ) -> None:
        super().__init__(f"{code}: {msg}" if msg else code)
        self.code, self.msg, self.retry_ms, self.field, self.cid = code, msg, retry_ms, field, cid

    @classmethod
    def of(cls, frame: Mapping[str, Any]) -> RequestError:
        """The error that an `err` frame tells. Keys of a wrong type are passed over."""
        retry_ms, field, cid = frame.get("retry_ms"), frame.get("field"), frame.get("cid")
        return cls(
            str(frame.get("code", "internal")), str(frame.get("msg", "")),
            retry_ms=retry_ms if isinstance(retry_ms, int) and retry_ms >= 0 else None,
            field=field if isinstance(field, str) else None,
            cid=cid if isinstance(cid, str) else None,
        )  # fmt: skip


class ConnectionLost(ClientError):
    """The connection is over. `close_code` as in RFC 6455: 1006 without a close frame."""

    def __init__(self, close_code: int, close_reason: str = "") -> None:
        super().__init__(f"connection closed with {close_code}" + (f" ({close_reason})" if close_reason else ""))
        self.close_code, self.close_reason = close_code, close_reason


class ProtocolError(ClientError):
    """A frame that no chatd.v1 server sends."""


class OutboxFull(ClientError):
    """Wait for some sends to be answered before the next."""


class EpochChanged(ClientError):
    """The server's log was restored from a backup.

    Read the conversation again before you edit or delete in it.
    """


class NoToken(ClientError):
    """For token callables: there is no token to be had without a person."""


class Stopped(ClientError):
    """The client has ended.

    `reason` is a name of section 10 of docs/protocol.md, an error code, or a word of the client's
    own.
    """

    def __init__(self, reason: str, close_code: int | None = None, detail: str = "") -> None:
        super().__init__(f"the client stopped: {reason}" + (f" ({detail})" if detail else ""))
        self.reason, self.close_code = reason, close_code


class Closed(Stopped):
    """`close()` was called."""

    def __init__(self) -> None:
        super().__init__("closed", 1000)
