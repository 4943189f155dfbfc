"""Words for people who wait for a connection: once an outage, and when it is over.

A cut that the next try mends is not worth a word. Programs read `Line` instead.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from chatd.client.printable import escaped

if TYPE_CHECKING:
    from typing import TextIO

    from chatd.client.values import Line


class Outages:
    """Writes to `err`, which may be full or closed. To be given to a Client as its `on_line`."""

    def __init__(self, url: str, err: TextIO) -> None:
        self._url, self._err = url, err
        self._told = False

    def __call__(self, line: Line) -> None:
        if line.state == "online" and self._told:
            self._told = False
            self._tell("connected")
        elif line.state == "offline" and line.reason == "unreachable" and not self._told:
            self._told = True
            self._tell(f"cannot connect to {escaped(line.detail or self._url)}; trying again until it can be reached")

    def _tell(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._err.write(f"chatd: {text}\n")
            self._err.flush()
