"""Runs one vector against a client: plays the server.

    ClientRunner(subject).run(steps)     raises Mismatch, which names the step

The steps are described in docs/conformance.md. A client is reached through a `Subject`: a program
behind the line protocol (adapter), or an object in the same process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Final, Protocol

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from chatd.conformance.server_vectors import SUBPROTOCOL, WAIT_S
from chatd.conformance.values import Frame, Mismatch, Values, as_frame, as_frames, as_int, as_list, as_text

KINDS: Final = ("message", "edit", "delete")
ITEM: Final[Frame] = {
    "ts": 1790000000000, "delivered": 0, "read": 0, "peer_delivered": 0, "peer_read": 0, "unread": 0, "open": True,
}  # fmt: skip
WELCOME: Final[Frame] = {
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
# What the application may do, and what the value of that word is
MAIN: Final = {"send": "body", "edit": "body", "delete": "ref", "read": "seq", "history": "before"}
WITHOUT_RESULT: Final = ("read",)


class Subject(Protocol):
    """The client under test."""

    @property
    def can(self) -> frozenset[str]:
        """What its application may do: words of `MAIN`."""

    async def start(self, url: str) -> None:
        """Begin to connect. Tokens: `old`, and `new` when another one is needed."""

    def ask(self, what: str, keys: Frame) -> asyncio.Future[Frame]:
        """The application does something.

        The future has `seq` once it is stored, `entries` for a page of history, or `code` once it
        is refused for good.
        """

    async def shown(self, count: int) -> list[Frame]:
        """Wait until so many entries of known kinds were given to the application; all of them, as
        in history, with `c`.
        """

    async def ended(self) -> None:
        """Wait until it has given up."""

    async def stop(self) -> None:
        """End it, whatever it does."""


class ClientRunner:
    """Runs one vector."""

    def __init__(self, subject: Subject, wait_s: float = WAIT_S) -> None:
        self._subject = subject
        self._wait_s = wait_s
        self._values = Values(is_plain=True)
        self._coming: asyncio.Queue[ServerConnection] = asyncio.Queue()
        self._current: ServerConnection | None = None
        self._hello: Frame = {}
        self._waiting: list[Frame] = []  # frames of the client that no step asked for yet
        self._results: list[asyncio.Future[Frame]] = []

    async def run(self, steps: list[Frame]) -> None:
        """Raises Mismatch with the number of the step."""
        protocols = [Subprotocol(SUBPROTOCOL)]
        async with serve(self._serve, "127.0.0.1", 0, subprotocols=protocols, compression=None) as server:
            (listening,) = server.sockets
            n = 0
            step: Frame = {}
            try:
                async with asyncio.timeout(self._wait_s * 2):
                    await self._subject.start(f"ws://127.0.0.1:{listening.getsockname()[1]}/ws")
                    await self._connected({})
                    for step in steps:
                        n += 1
                        await self._step(step)
            except (Mismatch, TimeoutError, ConnectionClosed) as e:
                why = "nothing came in time" if isinstance(e, TimeoutError) else str(e)
                raise Mismatch(f"step {n}, {json.dumps(step)[:300]}: {why}") from e
            finally:
                for result in self._results:
                    result.cancel()
                await self._subject.stop()

    async def _serve(self, ws: ServerConnection) -> None:
        self._coming.put_nowait(ws)
        await ws.wait_closed()

    @property
    def _ws(self) -> ServerConnection:
        if self._current is None:
            raise Mismatch("it has not connected")
        return self._current

    async def _connected(self, pattern: Frame) -> None:
        if self._current is not None:
            await self._current.wait_closed()
        self._current = await self._coming.get()
        self._waiting.clear()
        self._hello = await self._next("hello")
        self._values.match(pattern, self._hello)
        self._values.stored["$hello"] = self._hello["id"]

    async def _step(self, step: Frame) -> None:
        match step:
            case {"welcome": dict(welcome)}:
                await self._send(self._welcome(self._as_asked(welcome) if "as_asked" in step else welcome))
            case {"storm": list(closes)}:
                await self._storm(closes, step)
            case {"server": dict(frame)}:
                await self._send(self._values.made_frame(frame))
            case {"raw": str(text)}:
                await self._ws.send(text)
            case {"close": int(code)}:
                await self._ws.close(code)
            case {"app": dict(app)}:
                self._do(app)
            case {"app_result": pattern}:
                self._values.match(pattern, await self._results.pop(0))
            case {"client": dict(pattern)}:
                await self._expect(pattern, step)
            case {"shows": list(patterns)}:
                self._values.match(patterns, await self._shown(len(patterns), step))
            case {"does": "reconnect"}:
                await self._connected(as_frame(step.get("hello", {})))
            case {"does": "give up"}:
                await self._subject.ended()
            case _:
                raise Mismatch("no such step")

    def _do(self, app: Frame) -> None:
        (what,) = app.keys() & MAIN.keys()
        keys = {MAIN[what] if key == what else key: value for key, value in app.items()}
        result = self._subject.ask(what, self._values.made_frame(keys))
        if what not in WITHOUT_RESULT:
            self._results.append(result)

    def _as_asked(self, given: Frame) -> Frame:
        """With a mark only what the hello names is listed; `page` and `reset` answer a cursor
        alone.
        """
        named = as_frame(self._hello.get("cursors", {}))
        listed = as_frames(given["conversations"])
        items = [item for item in listed if "since" not in self._hello or item["c"] in named]
        cursorless = [
            {k: v for k, v in item.items() if k not in ("page", "reset") or item["c"] in named} for item in items
        ]
        return {**given, "conversations": cursorless}

    async def _storm(self, closes: list[object], step: Frame) -> None:
        """Welcome each connection and close it at once, for a while; count the connections."""
        count = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(as_int(step["for_ms"]) / 1000):
                while True:
                    how = closes[count % len(closes)]
                    count += 1
                    await self._send(self._welcome({}))
                    if isinstance(how, dict):
                        await self._send(how)
                    await self._ws.close(how if isinstance(how, int) else 1012)
                    await self._connected({})
        if count > as_int(step["at_most"]):
            raise Mismatch(f"it connected {count} times in {step['for_ms']} ms")

    async def _shown(self, count: int, step: Frame) -> list[Frame]:
        shown = asyncio.ensure_future(self._subject.shown(count))
        try:
            while "meanwhile" in step and not shown.done():
                asked = asyncio.ensure_future(self._next(as_text(as_frame(step["meanwhile"])["t"])))
                await asyncio.wait([shown, asked], return_when=asyncio.FIRST_COMPLETED)
                if asked.done():
                    self._values.match(step["meanwhile"], asked.result())
                    await self._send({"id": asked.result()["id"], **self._values.made_frame(step["answer"])})
                asked.cancel()
            return await shown
        finally:
            shown.cancel()

    async def _expect(self, pattern: Frame, step: Frame) -> None:
        while True:
            frame = await self._next(as_text(pattern["t"]))
            if "before" in step and self._values.matches(step["before"], frame):
                await self._send({"id": frame["id"], **self._values.made_frame(step["answer"])})
                continue
            self._values.match(pattern, frame)
            return

    def _welcome(self, given: Frame) -> Frame:
        frame: Frame = {
            "t": "welcome",
            "id": self._hello["id"],
            **WELCOME,
            "device": self._hello["device"],
            "conversations": [],
            "more": False,
            **given,
        }
        frame["conversations"] = [{**ITEM, **as_frame(item)} for item in as_list(frame["conversations"])]
        return frame if frame["more"] else {"since": "s1", **frame}

    async def _send(self, frame: Frame) -> None:
        await self._ws.send(json.dumps(frame))

    async def _next(self, t: str) -> Frame:
        """The client's next frame of this type."""
        while True:
            for n, frame in enumerate(self._waiting):
                if frame["t"] == t:
                    return self._waiting.pop(n)
            frame = as_frame(json.loads(await self._ws.recv()))
            if (answer := courtesy(frame)) is not None:
                await self._send(answer)
            self._waiting.append(frame)


def courtesy(frame: Frame) -> Frame | None:
    """The answer to what a client may ask at any time."""
    match frame["t"]:
        case "ack" | "read" as t:
            seq = frame["seq"]
            read = seq if t == "read" else 0
            return {"t": "ok", "id": frame["id"], "c": frame.get("c", "12"), "delivered": seq, "read": read}
        case "watch":
            return {"t": "ok", "id": frame["id"], "presence": []}
        case "presence" | "typing":
            return {"t": "ok", "id": frame["id"]}
        case "ping":
            return {"t": "pong", "id": frame["id"], "ts": 1790000000000}
    return None


def known(entries: list[Frame]) -> list[Frame]:
    """Entries of the kinds of chatd.v1: others may be given to the application or not."""
    return [entry for entry in entries if entry["kind"] in KINDS]
