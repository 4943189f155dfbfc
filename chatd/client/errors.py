"""What the Python client raises, in one tree below `chatd.errors.ChatdError`.

    ClientError
    ├── RequestError      the server refused this request (section 9 of docs/protocol.md)
    ├── ConnectionLost    one connection ended (`Connection` raises it; `Client` reconnects)
    ├── ProtocolError     the other side does not speak chatd.v1
    ├── OutboxFull        too much waits to be sent already
    ├── CidTaken          this cid is that of another message, edit or delete
    ├── Withdrawn         a send that its handle took back: it is not in the log
    ├── EpochChanged      the log was restored from a backup, without the message of this change
    ├── NoToken           raised by *your* token callable: there is none, do not ask again
    └── Stopped           the client has ended: `reason`, `close_code`, `field`, `msg`
        └── Closed        because `close()` was called

A send that raises RequestError is not in the log and never will be. Stopped says nothing of the
kind: what was on its way may be in the log, and `Client.state()` still holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from chatd.errors import ChatdError

if TYPE_CHECKING:
    from chatd.client.values import Sent

# The longest wait that a server may ask for: a new conversation can take an hour
# (`too_many_conversations`). What is beyond it is an error of the server, and waits for ever.
RETRY_MS_MAX: Final = 3_600_000


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
        """The error that an `err` frame tells. Keys of a wrong type are passed over.

        `retry_ms` is at most RETRY_MS_MAX. JSON numbers beyond 64 bits come as floats.
        """
        retry_ms, field, cid = frame.get("retry_ms"), frame.get("field"), frame.get("cid")
        number = isinstance(retry_ms, int | float) and not isinstance(retry_ms, bool)
        wait_ms = retry_ms if number and retry_ms is not None and retry_ms >= 0 else None
        return cls(
            str(frame.get("code", "internal")), str(frame.get("msg", "")),
            retry_ms=None if wait_ms is None else int(min(wait_ms, RETRY_MS_MAX)),
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


class CidTaken(ClientError):
    """The cid was used before, for something else: what was asked for is not in the log.

    `sent`: where the first one stands, if that is known.
    """

    def __init__(self, cid: str, sent: Sent | None = None) -> None:
        place = "" if sent is None else f"; it stands at {sent.seq}"
        super().__init__(f"the cid {cid} is that of something else{place}: a new message needs a cid of its own")
        self.cid, self.sent = cid, sent


class Withdrawn(ClientError):
    """`Sending.cancel` took it back."""


class EpochChanged(ClientError):
    """The server's log was restored from a backup.

    Read the conversation again before you edit or delete in it.
    """


class NoToken(ClientError):
    """For token callables: there is no token to be had without a person."""


class Stopped(ClientError):
    """The client has ended.

    `reason` is a name of section 10 of docs/protocol.md, an error code, or a word of the client's
    own. `field`, `msg`: of the server's refusal, where there was one.
    """

    def __init__(
        self, reason: str, close_code: int | None = None, detail: str = "", *, field: str | None = None, msg: str = ""
    ) -> None:
        detail = detail or msg
        super().__init__(f"the client stopped: {reason}" + (f" ({detail})" if detail else ""))
        self.reason, self.close_code, self.field, self.msg = reason, close_code, field, msg


class Closed(Stopped):
    """`close()` was called."""

    def __init__(self) -> None:
        super().__init__("closed", 1000)
