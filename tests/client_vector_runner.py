"""Runs the vectors of `tests/vectors/client/` against a client: plays the server.

The format is in tests/vectors/README.md.

Nothing but `websockets` and `json` here either. A client is tried through a `Subject`, a few lines
that map these four words to its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, Protocol

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.client import Frame
from tests.vector_runner import Mismatch, Runner

WAIT_S = 10.0
KINDS = ("message", "edit", "delete")
ITEM: Frame = {
    "ts": 1790000000000, "delivered": 0, "read": 0, "peer_delivered": 0, "peer_read": 0, "unread": 0, "open": True,
}  # fmt: skip
WELCOME: Frame = {
    "user": "alice",
    "v": 1,
    "features": [],
    "epoch": "e1",
    "ts": 1790000000000,
    "heartbeat_ms": 20000,
    "exp": 4000000000000,
    "limits": {
        "frame_bytes": 16384,
        "body_bytes": 2048,
        "messages": 10,
        "per_ms": 5000,
        "watch": 200,
        "history": 100,
        "edit_ms": 900000,
        "resync": 500,
    },
    "presence": [],
}


class Subject(Protocol):
    """The client under test."""

    async def start(self, url: str) -> None:
        """Begin to connect. Tokens: `old`, and `new` when another one is needed."""

    def send(self, to: str, body: str) -> asyncio.Future[Frame]:
        """Send a message; the future has {"seq": ...} once it is stored, {"code": ...} once it is
        refused for good.
        """

    async def shown(self, count: int) -> list[Frame]:
        """Wait until so many entries of known kinds were given to the application; all of them, as
        in history, with `c`.
        """

    async def ended(self) -> None:
        """Wait until it has given up."""

    async def stop(self) -> None: ...


class ClientRunner:
    """Runs one vector."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._values = Runner("", lambda *_: "")  # for its patterns
        self._coming: asyncio.Queue[ServerConnection] = asyncio.Queue()
        self._ws: ServerConnection | None = None
        self._hello: Frame = {}
        self._waiting: list[Frame] = []  # frames of the client that no step asked for yet
        self._results: list[asyncio.Future[Frame]] = []

    async def run(self, steps: list[Frame]) -> None:
        """Raises Mismatch with the number of the step."""
        async with serve(self._serve, "127.0.0.1", 0, subprotocols=["chatd.v1"], compression=None) as server:  # type: ignore[list-item]
            await self._subject.start(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws")
            n = 0
            step: Frame = {}
            try:
                async with asyncio.timeout(WAIT_S * 2):
                    await self._connected({})
                    for step in steps:
                        n += 1
                        await self._step(step)
            except (Mismatch, TimeoutError, ConnectionClosed) as e:
                raise Mismatch(f"step {n}, {json.dumps(step)[:300]}: {type(e).__name__} {e}") from e
            finally:
                await self._subject.stop()

    async def _serve(self, ws: ServerConnection) -> None:
        self._coming.put_nowait(ws)
        await ws.wait_closed()

    async def _connected(self, pattern: Frame) -> None:
        if self._ws is not None:
            await self._ws.wait_closed()
        self._ws = await self._coming.get()
        self._waiting.clear()
        self._hello = await self._next("hello")
        self._values.match(pattern, self._hello)
        self._values._stored["$hello"] = self._hello["id"]

    async def _step(self, step: Frame) -> None:
        match step:
            case {"welcome": welcome}:
                await self._send(self._welcome(self._as_asked(welcome) if "as_asked" in step else welcome))
            case {"storm": closes}:
                await self._storm(closes, step)
            case {"server": frame}:
                await self._send(self._filled(frame))
            case {"raw": text}:
                assert self._ws is not None
                await self._ws.send(text)
            case {"close": code}:
                assert self._ws is not None
                await self._ws.close(code)
            case {"app": {"send": body, "to": to}}:
                self._results.append(self._subject.send(to, body))
            case {"app_result": pattern}:
                self._values.match(pattern, await self._results.pop(0))
            case {"client": pattern}:
                await self._expect(pattern, step)
            case {"shows": patterns}:
                self._values.match(patterns, await self._shown(len(patterns), step))
            case {"does": "reconnect"}:
                await self._connected(step.get("hello", {}))
            case {"does": "give up"}:
                await self._subject.ended()
            case _:
                raise Mismatch("no such step")

    def _as_asked(self, given: Frame) -> Frame:
        """With a mark only what the hello names is listed; `page` and `reset` answer a cursor
        alone.
        """
        named = self._hello.get("cursors", {})
        items = [item for item in given["conversations"] if "since" not in self._hello or item["c"] in named]
        cursorless = [
            {k: v for k, v in item.items() if k not in ("page", "reset") or item["c"] in named} for item in items
        ]
        return {**given, "conversations": cursorless}

    async def _storm(self, closes: list[int | Frame], step: Frame) -> None:
        """Welcome and close at once, for a while, whoever comes; counts how often that is."""
        count = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(step["for_ms"] / 1000):
                while True:
                    how = closes[count % len(closes)]
                    count += 1
                    await self._send(self._welcome({}))
                    assert self._ws is not None
                    if isinstance(how, dict):
                        await self._send(how)
                        how = 1012
                    await self._ws.close(how)
                    await self._connected({})
        if count > step["at_most"]:
            raise Mismatch(f"it came {count} times in {step['for_ms']} ms")

    async def _shown(self, count: int, step: Frame) -> list[Frame]:
        shown = asyncio.ensure_future(self._subject.shown(count))
        while "meanwhile" in step and not shown.done():
            asked = asyncio.ensure_future(self._next(step["meanwhile"]["t"]))
            await asyncio.wait([shown, asked], return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                self._values.match(step["meanwhile"], asked.result())
                await self._send({"id": asked.result()["id"], **self._filled(step["answer"])})
            asked.cancel()
        return await shown

    async def _expect(self, pattern: Frame, step: Frame) -> None:
        while True:
            frame = await self._next(pattern["t"])
            if "before" in step and self._values._matches(step["before"], frame):
                await self._send({"id": frame["id"], **self._filled(step["answer"])})
                continue
            self._values.match(pattern, frame)
            return

    def _welcome(self, given: Frame) -> Frame:
        frame = {
            "t": "welcome",
            "id": self._hello["id"],
            **WELCOME,
            "device": self._hello["device"],
            "conversations": [],
            "more": False,
            **given,
        }
        frame["conversations"] = [{**ITEM, **item} for item in frame["conversations"]]
        return frame if frame["more"] else {"since": "s1", **frame}

    def _filled(self, frame: Frame) -> Frame:
        stored = self._values._stored
        return {
            key: stored[value] if isinstance(value, str) and value in stored else value for key, value in frame.items()
        }

    async def _send(self, frame: Frame) -> None:
        assert self._ws is not None
        await self._ws.send(json.dumps(frame))

    async def _next(self, t: str) -> Frame:
        """The client's next frame of this type."""
        assert self._ws is not None
        while True:
            for n, frame in enumerate(self._waiting):
                if frame["t"] == t:
                    return self._waiting.pop(n)
            frame = json.loads(await self._ws.recv())
            if (answer := _courtesy(frame)) is not None:
                await self._send(answer)
            else:
                self._waiting.append(frame)


def _courtesy(frame: Frame) -> Frame | None:
    """The answer to what a client may ask at any time."""
    match frame["t"]:
        case "ack" | "read":
            return {"t": "ok", "id": frame["id"], "c": frame.get("c", "12"), "delivered": frame["seq"], "read": 0}
        case "watch":
            return {"t": "ok", "id": frame["id"], "presence": []}
        case "presence" | "typing":
            return {"t": "ok", "id": frame["id"]}
        case "ping":
            return {"t": "pong", "id": frame["id"], "ts": 1790000000000}
    return None


def known(entries: list[Any]) -> list[Any]:
    """Entries of the kinds of chatd.v1: others may be given to the application or not."""
    return [entry for entry in entries if entry["kind"] in KINDS]
