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

import contextlib
import random
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Final

from chatd.client.client import Client
from chatd.client.dial import Dial, Next
from chatd.client.reconnect import Token

if TYPE_CHECKING:
    from typing import TextIO

    from chatd.client.frames import Entry

ESCAPES: Final = {"\n": r"\n", "\t": r"\t", "\\": r"\\"}


async def tail(url: str, token: Token, *, out: TextIO, err: TextIO) -> None:
    """Print until cancelled: entries to `out`, how the connection fares to `err`.

    Raises Stopped where the client ends otherwise.
    """
    client = Client(url, token=token, device=f"tail-{uuid.uuid4().hex[:12]}", auto_ack=False)
    client._reconnector.dial = _TellingDial(url, err, renewable=not isinstance(token, str))
    async with client:
        async for entry in client.entries():
            out.write(line(entry) + "\n")
            out.flush()


class _TellingDial(Dial):
    """The client's own policy, and a word for people where it makes them wait."""

    def __init__(self, url: str, err: TextIO, *, renewable: bool) -> None:
        super().__init__(random.Random(), renewable=renewable)
        self._url, self._err = url, err
        self._waiting = False

    def _tell(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a stderr that is full or closed is no reason to end
            self._err.write(f"chatd: {text}\n")
            self._err.flush()

    def unreachable(self, http_status: int | None = None) -> Next:
        then = super().unreachable(http_status)
        if then.wait_s is not None and not self._waiting:
            self._waiting = True
            answer = "no server answers" if http_status is None else f"HTTP {http_status} is the answer"
            self._tell(f"{answer} at {self._url}; waiting until one can be reached, trying again and again")
        return then

    def live(self) -> None:
        super().live()
        if self._waiting:
            self._waiting = False
            self._tell("connected")


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
