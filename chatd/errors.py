"""All errors of requests and connections, in one tree.

    ChatdError
    ├── Refused           a request fails; the wire says `err` with `code`
    │   ├── ClientFault   the request is wrong: another try gives the same answer
    │   └── Retryable     another try after `retry_ms` can succeed
    └── SettingError      the operator's: one line that names the remedy, exit status 2

`CloseCode` lists why the server ends a connection. `tests/unit/test_errors.py` checks the tables in
`docs/protocol.md` sections 9 and 10 against this module. Pure: imports nothing.
"""

from __future__ import annotations

import enum


class ChatdError(Exception):
    """The root of all errors that chatd itself raises."""


class SettingError(ChatdError):
    """A setting or a file it names is wrong; `str()` is one line that names the remedy."""


class Refused(ChatdError):
    """A request that fails. `code`: the stable name on the wire; `str()`: a sentence for people."""

    code: str = "internal"
    retry_ms: int | None = None

    def __init__(self, msg: str, *, field: str | None = None, cid: str | None = None) -> None:
        super().__init__(msg)
        self.field = field
        self.cid = cid


class ClientFault(Refused):
    """The request is wrong; another try gives the same answer."""


class Retryable(Refused):
    """Another try after `retry_ms` can succeed."""

    def __init__(self, msg: str, *, retry_ms: int, cid: str | None = None) -> None:
        super().__init__(msg, cid=cid)
        self.retry_ms = retry_ms


class BadFrame(ClientFault):
    code = "bad_frame"


class BadId(ClientFault):
    code = "bad_id"


class UnknownType(ClientFault):
    code = "unknown_type"


class BadField(ClientFault):
    code = "bad_field"


class BadText(ClientFault):
    code = "bad_text"


class TooLong(ClientFault):
    code = "too_long"


class BadState(ClientFault):
    code = "bad_state"


class BadVersion(ClientFault):
    code = "bad_version"


class Unauthorized(ClientFault):
    code = "unauthorized"


class TokenExpired(ClientFault):
    code = "token_expired"


class NoConversation(ClientFault):
    code = "no_conversation"


class NoUser(ClientFault):
    code = "no_user"


class BadSeq(ClientFault):
    code = "bad_seq"


class NoMessage(ClientFault):
    code = "no_message"


class NotAuthor(ClientFault):
    code = "not_author"


class Deleted(ClientFault):
    code = "deleted"


class TooLate(ClientFault):
    code = "too_late"


class NotOpen(ClientFault):
    code = "not_open"


class DataRefused(ClientFault):
    code = "refused"


class Blocked(ClientFault):
    code = "blocked"


class RateLimited(Retryable):
    code = "rate_limited"


class TooManyConversations(Retryable):
    code = "too_many_conversations"


class Overloaded(Retryable):
    code = "overloaded"


class Unavailable(Retryable):
    code = "unavailable"


class CloseCode(enum.IntEnum):
    """Why the server ends a connection (RFC 6455 section 7.4; 4000-4999 are ours)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED = 1003
    BAD_UTF8 = 1007
    TOO_BIG = 1009
    INTERNAL = 1011
    RESTART = 1012
    BAD_FRAMES = 4000
    UNAUTHORIZED = 4001
    TOKEN_EXPIRED = 4002
    HELLO_TIMEOUT = 4003
    REPLACED = 4004
    TOO_MANY_DEVICES = 4005
    SLOW_CONSUMER = 4006
    HEARTBEAT = 4007
    RATE_LIMITED = 4008
    OVERLOADED = 4009
