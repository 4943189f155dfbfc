"""One connection of a client to the server that a walk plays: its frames out, and its end.

    link.say(frame)         goes out behind what was said before
    link.lag(0.1)           what follows leaves later
    link.close(code)        a close behind it; None: the line breaks there, without a word
    link.abort()            the line breaks now, with all that has not left

What a connection knows ends with it: who waits for which cid (`blocked`), and until when (`due`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TypeAlias

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from chatd.conformance.values import Frame

CloseWith: TypeAlias = tuple[int | None]


class PlayedLink:
    """`is_live`: it is welcomed, and gets what happens from now on."""

    def __init__(self, ws: ServerConnection) -> None:
        self.ws = ws
        self.is_live = False
        self.is_over = False
        self.blocked: dict[str, str] = {}  # peer -> the cid that is waited for
        self.due: dict[str, float] = {}  # cid -> not to be sent again before this time of the loop
        self._out: asyncio.Queue[Frame | float | CloseWith] = asyncio.Queue()

    def say(self, frame: Frame) -> None:
        """Send a frame behind the others."""
        if not self.is_over:
            self._out.put_nowait(frame)

    def lag(self, lag_s: float) -> None:
        """What is said from now on leaves so much later."""
        self._out.put_nowait(lag_s)

    def close(self, code: int | None) -> None:
        """The last that goes out; nothing is heard any more."""
        if not self.is_over:
            self._out.put_nowait((code,))
        self.is_live, self.is_over = False, True

    def abort(self) -> None:
        """Break the line now."""
        self.is_live, self.is_over = False, True
        self.ws.transport.abort()

    async def write(self) -> None:
        """Sends what is said, until the end."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                match await self._out.get():
                    case (int(code),):
                        await self.ws.close(code)
                        return
                    case (None,):
                        self.ws.transport.abort()
                        return
                    case float(lag_s):
                        await asyncio.sleep(lag_s)
                    case frame:
                        await self.ws.send(json.dumps(frame))
