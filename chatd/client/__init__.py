"""The Python SDK of chatd.

`Client` for apps and bots; `Connection` for tools that want the bare protocol. docs/client.md is
its page.
"""

from chatd.client.client import Client
from chatd.client.connection import Connection
from chatd.client.errors import (
    ClientError,
    Closed,
    ConnectionLost,
    EpochChanged,
    NoToken,
    OutboxFull,
    ProtocolError,
    RequestError,
    Stopped,
)
from chatd.client.frames import (
    ConversationItem,
    ConversationPage,
    Entry,
    Event,
    Frame,
    Limits,
    Notice,
    Page,
    Presence,
    Receipt,
    Reset,
    Sent,
    Typing,
    Unsent,
)
from chatd.client.reconnect import Token

__all__ = [
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
    "Frame",
    "Limits",
    "NoToken",
    "Notice",
    "OutboxFull",
    "Page",
    "Presence",
    "ProtocolError",
    "Receipt",
    "RequestError",
    "Reset",
    "Sent",
    "Stopped",
    "Token",
    "Typing",
    "Unsent",
]
