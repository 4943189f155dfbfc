r"""A live view of one user's messages, a line each, for trying things out: `chatd tail USER`.

    20:14:44 bob > hi                      bob wrote
    20:14:51 bob < hello                   the user wrote to bob, on whatever device
    20:15:02 bob > [edits 61] hi!
    20:15:09 bob > [deletes 61]

It looks on and changes nothing: no ack, no read. What others wrote never reaches the terminal as anything but text: whatever Python does not call
printable (control and format characters, bidi overrides among them, separators, unassigned) is shown as an escape, and a backslash is doubled.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Final

from chatd.client.client import Client, Token

if TYPE_CHECKING:
    from typing import TextIO

    from chatd.client.frames import Entry

ESCAPES: Final = {"\n": r"\n", "\t": r"\t", "\\": r"\\"}


async def tail(url: str, token: Token, *, out: TextIO) -> None:
    """Print until cancelled. Raises Stopped where the client ends otherwise."""
    async with Client(url, token=token, device=f"tail-{uuid.uuid4().hex[:12]}", auto_ack=False) as client:
        async for entry in client.entries():
            out.write(line(entry) + "\n")
            out.flush()


def line(entry: Entry) -> str:
    """One entry as one line of printable text. The time is this machine's local one."""
    change = {"edit": f"[edits {entry.ref}] ", "delete": f"[deletes {entry.ref}] "}.get(entry.kind, "")
    body = "[deleted]" if entry.body is None and entry.kind == "message" else escaped(entry.body or "")
    return f"{_time(entry.ts)} {escaped(entry.peer)} {'<' if entry.own else '>'} {change}{body}".rstrip()


def escaped(text: str) -> str:
    """`text` without anything that a terminal obeys."""
    return "".join(c if c.isprintable() and c != "\\" else _escape(c) for c in text)


def _escape(c: str) -> str:
    point = ord(c)
    if c in ESCAPES:
        return ESCAPES[c]
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def _time(ts: int) -> str:
    try:
        return datetime.fromtimestamp(ts / 1000).astimezone().strftime("%H:%M:%S")
    except (OverflowError, OSError, ValueError):  # what a server sends need not be a time
        return str(ts)
