"""Runs one vector against a server: plays the clients.

    ServerRunner(url, token).run(steps)     raises Mismatch, which names the step

The steps are described in docs/conformance.md. `frames` keeps all that the server sent, and
`judged` the same with the schema that each must fit.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from chatd.conformance.values import (
    Frame,
    MakeToken,
    Mismatch,
    Values,
    as_frame,
    as_frames,
    as_int,
    as_list,
    as_text,
    spread,
)

WAIT_S: Final = 10.0  # for what must come; far beyond what it takes
FRAME_BYTES_MAX: Final = 1 << 24
# The schema of an `ok`, by the type of its request; of all others it is `ok`
OK_SCHEMAS: Final = {
    "send": "ok_send", "edit": "ok_send", "delete": "ok_send", "ack": "ok_ack", "read": "ok_ack", "watch": "ok_watch",
    "history": "ok_history", "conversations": "ok_conversations", "refresh": "ok_refresh",
}  # fmt: skip
SUBPROTOCOL: Final = "chatd.v1"


class WireLink:
    """One connection: replies by id, pushes in order, and all frames as they arrived."""

    def __init__(self, ws: ClientConnection, wait_s: float = WAIT_S) -> None:
        self.ws = ws
        self.last_id = 0
        self.arrived: list[Frame] = []
        self.replies: dict[int, list[Frame]] = {}  # by the ids that we gave
        self.pushes: list[Frame] = []
        self._asked: dict[int, object] = {}  # the type of each request
        self._wait_s = wait_s

    async def receive(self) -> None:
        """Take the next frame. Raises Mismatch, TimeoutError, ConnectionClosed."""
        async with asyncio.timeout(self._wait_s):
            data = await self.ws.recv()
        if not isinstance(data, str):
            raise Mismatch(f"a binary message arrived: {data!r}")
        frame = as_frame(json.loads(data))
        self.arrived.append(frame)
        id = frame.get("id")
        (self.replies.get(id, self.pushes) if isinstance(id, int) else self.pushes).append(frame)

    def request(self, frame: Frame) -> tuple[int, Frame]:
        """A request with its id: the next one, unless it has one."""
        id = as_int(frame.get("id", self.last_id + 1))
        self.last_id = max(self.last_id, id)
        self.replies.setdefault(id, [])
        self._asked[id] = frame.get("t")
        return id, {"id": id, **frame}

    def schema(self, frame: Frame) -> str:
        """The name of the schema that a frame of the server must fit."""
        t, id = frame.get("t"), frame.get("id")
        if t != "ok":
            return str(t)
        return OK_SCHEMAS.get(str(self._asked.get(id) if isinstance(id, int) else ""), "ok")

    async def reply(self, id: int) -> Frame:
        """The next frame with this id."""
        while not self.replies[id]:
            await self.receive()
        return self.replies[id].pop(0)

    async def push(self, t: object) -> Frame:
        """The next push of this type; others stay."""
        while True:
            for n, frame in enumerate(self.pushes):
                if frame["t"] == t:
                    return self.pushes.pop(n)
            await self.receive()


async def dial(
    url: str, *, subprotocols: tuple[str, ...] = (SUBPROTOCOL,), origin: str | None = None
) -> ClientConnection:
    """A connection that has said nothing yet."""
    return await connect(
        url,
        subprotocols=[Subprotocol(name) for name in subprotocols] or None,
        origin=None if origin is None else Origin(origin),
        compression=None,
        max_size=FRAME_BYTES_MAX,
    )


class ServerRunner:
    """Runs one vector.

    `token(user, options)` makes a token; `drain` makes the server drain, for the vectors that need
    it.
    """

    def __init__(
        self, url: str, token: MakeToken, drain: Callable[[], Awaitable[None]] | None = None, wait_s: float = WAIT_S
    ) -> None:
        self.judged: list[tuple[str, Frame]] = []
        self._url = url
        self._drain = drain
        self._wait_s = wait_s
        self._values = Values(token)
        self._links: dict[str, WireLink] = {}
        self._sent: dict[str, int] = {}

    @property
    def frames(self) -> list[Frame]:
        """All that the server sent, once the vector has ended."""
        return [frame for _, frame in self.judged]

    async def run(self, steps: list[Frame]) -> None:
        """Raises Mismatch with the number of the step."""
        try:
            for n, step in enumerate(steps, 1):
                try:
                    await self._step(step)
                except (Mismatch, TimeoutError, ConnectionClosed) as e:
                    raise Mismatch(f"step {n}, {json.dumps(step)[:300]}: {_reason(e)}") from e
        finally:
            for link in self._links.values():
                self.judged += [(link.schema(frame), frame) for frame in link.arrived]
                link.ws.transport.abort()

    async def _step(self, step: Frame) -> None:
        if "open" in step:
            await self._open(step)
        elif "hello" in step:
            await self._hello(step)
        elif "wait_ms" in step:
            await asyncio.sleep(as_int(step["wait_ms"]) / 1000)
        elif "server" in step:
            if self._drain is None:
                raise Mismatch("this runner cannot make the server drain")
            await self._drain()
        else:
            await self._on(self._links[as_text(step["on"])], step)

    async def _on(self, link: WireLink, step: Frame) -> None:
        if "ask" in step:
            (id,) = await self._post(link, [step["ask"]])
            if "as" in step:
                self._sent[as_text(step["as"])] = id
            else:
                self._values.match(step["reply"], await link.reply(id))
        elif "reply_to" in step:
            self._values.match(step["reply"], await link.reply(self._sent[as_text(step["reply_to"])]))
        elif "burst" in step:
            ids = await self._post(link, spread(as_list(step["burst"])))
            for id, pattern in zip(ids, spread(as_list(step["replies"])), strict=True):
                self._values.match(pattern, await link.reply(id))
        elif "expect" in step:
            self._values.match(step["expect"], await link.push(as_frame(step["expect"])["t"]))
        elif "quiet" in step:
            await self._quiet(link, step["quiet"])
        elif "arrived" in step:
            self._in_order(as_frames(step["arrived"]), link.arrived)
        elif "closed" in step:
            await self._closed(link, as_int(step["closed"]))
        elif "close" in step:
            await link.ws.close()
        else:
            await self._raw(link, step)

    # ---- steps -----------------------------------------------------------------------------------

    async def _open(self, step: Frame) -> None:
        protocols = tuple(as_text(name) for name in as_list(step.get("subprotocols", [SUBPROTOCOL])))
        origin = as_text(step["origin"]) if "origin" in step else None
        url = self._url if "path" not in step else urlsplit(self._url)._replace(path=as_text(step["path"])).geturl()
        try:
            ws = await dial(url, subprotocols=protocols, origin=origin)
        except InvalidStatus as e:
            if e.response.status_code != step.get("http"):
                raise Mismatch(f"HTTP status {e.response.status_code}") from None
            return
        self._links[as_text(step["open"])] = WireLink(ws, self._wait_s)
        if "http" in step:
            raise Mismatch("the handshake succeeded")
        if ws.subprotocol != (SUBPROTOCOL if SUBPROTOCOL in protocols else None):
            raise Mismatch(f"subprotocol {ws.subprotocol}")

    async def _hello(self, step: Frame) -> None:
        name = as_text(step["hello"])
        if name not in self._links:
            await self._open({"open": name})
        link = self._links[name]
        token = {"$token": {"user": step["user"]}}
        hello = {"t": "hello", "v": 1, "device": "d1", "token": token, **as_frame(step.get("with", {}))}
        (id,) = await self._post(link, [hello])
        self._values.match({"t": "welcome", **as_frame(step.get("welcome", {}))}, await whole_welcome(link, id))

    async def _quiet(self, link: WireLink, which: object) -> None:
        (id,) = await self._post(link, [{"t": "ping"}])
        await link.reply(id)
        left = [frame for frame in link.pushes if which is True or frame["t"] in as_list(which)]
        if left:
            raise Mismatch(f"unexpected: {left}")

    async def _post(self, link: WireLink, requests: list[object]) -> list[int]:
        asked = [link.request(self._values.made_frame(request)) for request in requests]
        for _, frame in asked:
            await link.ws.send(json.dumps(frame))
        return [id for id, _ in asked]

    async def _raw(self, link: WireLink, step: Frame) -> None:
        if "raw" in step:
            await link.ws.send(as_text(self._values.made(step["raw"])))
        elif "fragments" in step:
            await link.ws.send([as_text(self._values.made(part)) for part in as_list(step["fragments"])])
        elif "hex" in step:
            await link.ws.send(bytes.fromhex(as_text(step["hex"])), text=True)
        else:
            await link.ws.send(bytes.fromhex(as_text(step["binary"])))

    async def _closed(self, link: WireLink, code: int) -> None:
        try:
            while True:
                await link.receive()
        except ConnectionClosed as e:
            got = e.rcvd.code if e.rcvd is not None else 1006
        if got != code:
            raise Mismatch(f"closed with {got}")

    def _in_order(self, patterns: list[Frame], frames: list[Frame]) -> None:
        rest = iter(frames)
        for pattern in patterns:
            if not any(self._values.matches(pattern, frame) for frame in rest):
                raise Mismatch(f"{pattern} did not come in its place: {frames}")


async def whole_welcome(link: WireLink, id: int) -> Frame:
    """All pages of the answer to a hello as one frame; an `err` as it is."""
    welcome = page = await link.reply(id)
    while page.get("more"):
        page = await link.reply(id)
        conversations = as_list(welcome["conversations"]) + as_list(page["conversations"])
        welcome = {**welcome, **page, "conversations": conversations}
    return welcome


def _reason(error: Exception) -> str:
    if isinstance(error, Mismatch):
        return str(error)
    return "nothing came in time" if isinstance(error, TimeoutError) else f"the connection ended: {error}"
