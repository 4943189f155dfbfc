r"""A live view of one user's messages, a line each, for trying things out: `chatd tail USER`.

    20:14:44 bob > hi                      bob wrote
    20:14:51 bob < hello                   the user wrote to bob, on whatever device
    20:15:02 bob > [edits 61] hi!
    20:15:09 bob > [deletes 61]

It looks on and changes nothing: no ack, no read. What others wrote never reaches the terminal as
anything but text: whatever Python does not call printable (control and format characters, bidi
overrides among them, separators, unassigned) is shown as an escape, and a backslash is doubled.
While no server can be reached it says so, on another stream: once an outage, and when that is over.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING

from chatd.client.client import Client
from chatd.client.outages import Outages
from chatd.client.printable import escaped
from chatd.client.reconnect import Token

if TYPE_CHECKING:
    from typing import TextIO

    from chatd.client.frames import Entry


async def tail(url: str, token: Token, *, out: TextIO, err: TextIO) -> None:
    """Print until cancelled: entries to `out`, how the connection fares to `err`.

    Raises Stopped where the client ends otherwise.
    """
    device = f"tail-{uuid.uuid4().hex[:12]}"
    async with Client(url, token=token, device=device, auto_ack=False, on_line=Outages(url, err)) as client:
        async for entry in client.entries():
            out.write(line(entry) + "\n")
            out.flush()


def line(entry: Entry) -> str:
    """One entry as one line of printable text. The time is this machine's local one."""
    change = {"edit": f"[edits {entry.ref}] ", "delete": f"[deletes {entry.ref}] "}.get(entry.kind, "")
    body = "[deleted]" if entry.body is None and entry.kind == "message" else escaped(entry.body or "")
    return f"{_time(entry.ts)} {escaped(entry.peer)} {'<' if entry.own else '>'} {change}{body}".rstrip()


def _time(ts: int) -> str:
    try:
        return datetime.fromtimestamp(ts / 1000).astimezone().strftime("%H:%M:%S")
    except (OverflowError, OSError, ValueError):  # what a server sends need not be a time
        return str(ts)
