"""The Python SDK of chatd.

`Client` for apps and bots; `Connection` for tools that want the bare protocol. docs/client.md is
its page.
"""

from chatd.client.client import Client
from chatd.client.connection import Connection
from chatd.client.errors import (
    CidTaken,
    ClientError,
    Closed,
    ConnectionLost,
    EpochChanged,
    NoToken,
    OutboxFull,
    ProtocolError,
    RequestError,
    Stopped,
    Withdrawn,
)
from chatd.client.frames import Frame
from chatd.client.log import Log, Message
from chatd.client.reconnect import Token
from chatd.client.sends import Sending, SendingState
from chatd.client.store import FileStore, MemoryStore, State, Store, StoreInUse
from chatd.client.values import (
    CatchUpFailed,
    ConversationItem,
    ConversationPage,
    Entry,
    Event,
    Kind,
    Limits,
    Line,
    LineState,
    Notice,
    Page,
    Presence,
    PresenceState,
    Receipt,
    Reset,
    Sent,
    Typing,
    Unreadable,
    Unsent,
)

__all__ = [
    "CatchUpFailed",
    "CidTaken",
    "Client",
    "ClientError",
    "Closed",
    "Connection",
    "ConnectionLost",
    "ConversationItem",
    "ConversationPage",
    "Entry",
    "EpochChanged",
    "Event",
    "FileStore",
    "Frame",
    "Kind",
    "Limits",
    "Line",
    "LineState",
    "Log",
    "MemoryStore",
    "Message",
    "NoToken",
    "Notice",
    "OutboxFull",
    "Page",
    "Presence",
    "PresenceState",
    "ProtocolError",
    "Receipt",
    "RequestError",
    "Reset",
    "Sending",
    "SendingState",
    "Sent",
    "State",
    "Stopped",
    "Store",
    "StoreInUse",
    "Token",
    "Typing",
    "Unreadable",
    "Unsent",
    "Withdrawn",
]
