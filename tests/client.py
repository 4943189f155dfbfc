"""The WebSocket client of the tests: frames over `websockets`, nothing of chatd's in between.

    dial(url)                       the one place that connects: awaited, a connection; `async with`, closed at the end
    Peer.open(url), peer.hello(…)   one connection, and the hello on it
    peer_at(place, user)            both, for as long as the block; a place has `url` and `token(user)`

faults/client.py (a device with an outbox, which comes back) builds on `dial`; the runner of vectors
in chatd/conformance has its own. Beside it there are three that share no line with it, each for a
reason: stranger.py knows docs/protocol.md alone, faults/raw.py breaks the rules of WebSocket, and
fix_costs.Wire costs nothing that could be counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol, TypeAlias

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.until import until

Frame: TypeAlias = dict[str, Any]
WAIT_S: Final = 15.0  # for what must come: longer than a request may wait for its `unavailable`


class Place(Protocol):
    """A server, in this process or in its own."""

    @property
    def url(self) -> str: ...

    def token(self, user: str) -> str: ...


def dial(url: str, **options: Any) -> connect:
    """`connect` of websockets, as for chatd; `options` are its own."""
    return connect(url, **{"subprotocols": [Subprotocol("chatd.v1")], "compression": None, **options})


class Peer:
    """One connection.

    `request` waits for its reply and keeps what is pushed before it; `push` gives the next pushed
    frame.
    """

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self.last_id = 0
        self.pushes: list[Frame] = []
        self.welcome: Frame = {}

    @classmethod
    async def open(cls, url: str, **options: Any) -> Peer:
        """A connection that has said nothing yet."""
        return cls(await dial(url, **options))

    async def hello(self, token: str, device: str = "d1", **keys: Any) -> Frame:
        """`welcome` holds all of its pages as one frame, or the error."""
        id = await self.post("hello", v=1, token=token, device=device, **keys)
        page = self.welcome = await self.reply(id)
        if page["t"] == "welcome":
            while page["more"]:
                page = await self.reply(id)
                self.welcome["conversations"] += page["conversations"]
            self.welcome.update(more=False, since=page["since"])
        return self.welcome

    async def recv(self) -> Frame:
        async with asyncio.timeout(WAIT_S):
            frame: Frame = json.loads(await self.ws.recv())
            return frame

    async def send_raw(self, data: str | bytes) -> None:
        await self.ws.send(data)

    async def post(self, t: str, **keys: Any) -> int:
        """Send a request and do not wait."""
        self.last_id += 1
        await self.ws.send(json.dumps({"t": t, "id": self.last_id, **keys}))
        return self.last_id

    async def reply(self, id: int) -> Frame:
        """Of any request: what came before it is kept."""
        for n, frame in enumerate(self.pushes):
            if frame.get("id") == id:
                return self.pushes.pop(n)
        while (frame := await self.recv()).get("id") != id:
            self.pushes.append(frame)
        return frame

    async def request(self, t: str, **keys: Any) -> Frame:
        return await self.reply(await self.post(t, **keys))

    async def say(self, to: str, body: str = "hi", **keys: Any) -> Frame:
        return await self.request("send", to=to, cid=keys.pop("cid", None) or str(uuid.uuid4()), body=body, **keys)

    async def insist(
        self, to: str, body: str = "hi", cid: str | None = None, refused: list[Frame] | None = None
    ) -> Frame:
        """A send, again with its cid until it is taken; gives its `ok`.

        `refused` gets what was answered before: `unavailable`, and nothing else.
        """
        cid = cid or str(uuid.uuid4())

        async def taken() -> Frame | None:
            answer = await self.say(to, body, cid=cid, retry=True)
            if answer["t"] == "ok":
                return answer
            assert answer["code"] == "unavailable", answer
            assert answer["retry_ms"] > 0, answer
            if refused is not None:
                refused.append(answer)
            return None

        return await until(taken, f"{body!r} to {to} is taken", pause_s=0.02)

    async def push(self, t: str | None = None) -> Frame:
        """The next push (of this type: others are dropped)."""
        while True:
            frame = self.pushes.pop(0) if self.pushes else await self.recv()
            if t is None or frame["t"] == t:
                return frame

    async def quiet(self) -> None:
        """Nothing was pushed: everything sent before a ping's answer has arrived when that does."""
        assert (await self.request("ping"))["t"] == "pong"
        assert self.pushes == []

    async def closed(self) -> int:
        """Wait for the end of the connection; gives the close code."""
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    self.pushes.append(json.loads(await self.ws.recv()))
        except ConnectionClosed as e:
            return e.rcvd.code if e.rcvd is not None else 1006

    async def close(self) -> None:
        await self.ws.close()


@contextlib.asynccontextmanager
async def peer_at(place: Place, user: str, device: str = "d1", **keys: Any) -> AsyncIterator[Peer]:
    """One that has said hello; its `welcome` may be an error."""
    async with dial(place.url) as ws:
        peer = Peer(ws)
        await peer.hello(keys.pop("token", None) or place.token(user), device, **keys)
        yield peer
