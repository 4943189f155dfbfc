"""Runs the vectors of `tests/vectors/server/` against a live server.

The format is in tests/vectors/README.md.

Written with nothing but `websockets` and `json`, as any SDK's author would: it is also a check that
the page and the vectors are enough. The caller gives the URL, a way to make tokens, and, for
vectors that ask for it, a way to make the server drain.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.client import Frame, dial

WAIT_S = 10.0  # for what must come; far beyond what it takes


class Mismatch(AssertionError):
    """The server did something else than the vector says."""


class Link:
    """One connection of a vector: replies by id, pushes in order, and all frames as they came."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self.last_id = 0
        self.arrived: list[Frame] = []
        self.replies: dict[int, list[Frame]] = {}  # by the ids that we gave
        self.pushes: list[Frame] = []

    async def receive(self) -> None:
        async with asyncio.timeout(WAIT_S):
            data = await self.ws.recv()
        if not isinstance(data, str):
            raise Mismatch(f"a binary message came: {data!r}")
        frame: Frame = json.loads(data)
        self.arrived.append(frame)
        self.replies.get(frame.get("id", 0), self.pushes).append(frame)

    def request(self, frame: Frame) -> Frame:
        id = frame.get("id", self.last_id + 1)
        self.last_id = max(self.last_id, id)
        self.replies.setdefault(id, [])
        return {"id": id, **frame}

    async def reply(self, id: int) -> Frame:
        while not self.replies[id]:
            await self.receive()
        return self.replies[id].pop(0)

    async def push(self, t: str) -> Frame:
        while True:
            for n, frame in enumerate(self.pushes):
                if frame["t"] == t:
                    return self.pushes.pop(n)
            await self.receive()


class Runner:
    """Runs one vector.

    `token(user, options)` makes a token; `frames` keeps what the server sent, for further checks.
    """

    def __init__(
        self, url: str, token: Callable[[str, Frame], str], drain: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.url = url
        self.frames: list[Frame] = []
        self._token = token
        self._drain = drain
        self._run = uuid.uuid4().hex[:8]
        self._links: dict[str, Link] = {}
        self._sent: dict[str, int] = {}
        self._stored: dict[str, Any] = {}
        self._cids: dict[str, str] = {}

    async def run(self, steps: list[Frame]) -> None:
        """Raises Mismatch with the number of the step."""
        try:
            for n, step in enumerate(steps, 1):
                try:
                    await self._step(step)
                except (Mismatch, TimeoutError, ConnectionClosed) as e:
                    raise Mismatch(f"step {n}, {json.dumps(step)[:300]}: {type(e).__name__} {e}") from e
        finally:
            for link in self._links.values():
                self.frames += link.arrived
                link.ws.transport.abort()

    async def _step(self, step: Frame) -> None:
        if "open" in step:
            await self._open(step)
        elif "hello" in step:
            await self._hello(step)
        elif "wait_ms" in step:
            await asyncio.sleep(step["wait_ms"] / 1000)
        elif "server" in step:
            if self._drain is None:
                raise Mismatch("this runner cannot make the server drain")
            await self._drain()
        else:
            await self._on(self._links[step["on"]], step)

    async def _on(self, link: Link, step: Frame) -> None:
        if "ask" in step:
            (id,) = await self._post(link, [step["ask"]])
            if "as" in step:
                self._sent[step["as"]] = id
            else:
                self.match(step["reply"], await link.reply(id))
        elif "reply_to" in step:
            self.match(step["reply"], await link.reply(self._sent[step["reply_to"]]))
        elif "burst" in step:
            ids = await self._post(link, _spread(step["burst"]))
            for id, pattern in zip(ids, _spread(step["replies"]), strict=True):
                self.match(pattern, await link.reply(id))
        elif "expect" in step:
            self.match(step["expect"], await link.push(step["expect"]["t"]))
        elif "quiet" in step:
            (id,) = await self._post(link, [{"t": "ping"}])
            await link.reply(id)
            left = [f for f in link.pushes if step["quiet"] is True or f["t"] in step["quiet"]]
            if left:
                raise Mismatch(f"unexpected: {left}")
        elif "arrived" in step:
            self._in_order(step["arrived"], link.arrived)
        elif "closed" in step:
            await self._closed(link, step["closed"])
        elif "close" in step:
            await link.ws.close()
        else:
            await self._raw(link, step)

    # ---- steps -----------------------------------------------------------------------------------

    async def _open(self, step: Frame) -> None:
        protocols = [Subprotocol(name) for name in step.get("subprotocols", ["chatd.v1"])]
        url = self.url.removesuffix("/ws") + step.get("path", "/ws")
        try:
            ws = await dial(url, subprotocols=protocols or None, origin=step.get("origin"), max_size=1 << 24)
        except InvalidStatus as e:
            if e.response.status_code != step.get("http"):
                raise Mismatch(f"HTTP status {e.response.status_code}") from None
            return
        self._links[step["open"]] = Link(ws)
        if "http" in step:
            raise Mismatch("the handshake succeeded")
        if ws.subprotocol != ("chatd.v1" if "chatd.v1" in protocols else None):
            raise Mismatch(f"subprotocol {ws.subprotocol}")

    async def _hello(self, step: Frame) -> None:
        name = step["hello"]
        if name not in self._links:
            await self._open({"open": name})
        link = self._links[name]
        token = {"$token": {"user": step["user"]}}
        (id,) = await self._post(link, [{"t": "hello", "v": 1, "device": "d1", "token": token, **step.get("with", {})}])
        welcome = page = await link.reply(id)
        while page.get("more"):
            page = await link.reply(id)
            welcome = {**welcome, **page, "conversations": welcome["conversations"] + page["conversations"]}
        self.match({"t": "welcome", **step.get("welcome", {})}, welcome)

    async def _post(self, link: Link, requests: list[Frame]) -> list[int]:
        frames = [link.request(self.value(request)) for request in requests]
        for frame in frames:
            await link.ws.send(json.dumps(frame))
        return [frame["id"] for frame in frames]

    async def _raw(self, link: Link, step: Frame) -> None:
        if "raw" in step:
            await link.ws.send(self.value(step["raw"]))
        elif "fragments" in step:
            await link.ws.send(self.value(step["fragments"]))
        elif "hex" in step:
            await link.ws.send(bytes.fromhex(step["hex"]), text=True)
        else:
            await link.ws.send(bytes.fromhex(step["binary"]))

    async def _closed(self, link: Link, code: int) -> None:
        try:
            while True:
                await link.receive()
        except ConnectionClosed as e:
            got = e.rcvd.code if e.rcvd is not None else 1006
        if got != code:
            raise Mismatch(f"closed with {got}")

    def _in_order(self, patterns: list[Frame], frames: list[Frame]) -> None:
        at = 0
        for pattern in patterns:
            while not self._matches(pattern, frames[at] if at < len(frames) else None):
                at += 1
                if at >= len(frames):
                    raise Mismatch(f"{pattern} did not come in its place: {frames}")
            at += 1

    def _matches(self, pattern: Any, got: Any) -> bool:
        try:
            self.match(pattern, got)
        except Mismatch:
            return False
        return True

    # ---- values ----------------------------------------------------------------------------------

    def value(self, value: Any) -> Any:
        """What stands for a value in something that is sent."""
        match value:
            case str():
                return self._text(value)
            case list():
                return [self.value(item) for item in _spread(value)]
            case dict() if len(value) == 1 and next(iter(value)).startswith("$"):
                ((word, given),) = value.items()
                return self._made(word, given)
            case dict():
                return {key: self.value(item) for key, item in value.items()}
        return value

    def _text(self, text: str) -> Any:
        match text[:1]:
            case "@":
                return f"{text[1:]}-{self._run}"
            case "#":
                return self._cids.setdefault(text, str(uuid.uuid4()))
            case "$":
                return self._stored[text]
        return text

    def _made(self, word: str, given: Any) -> Any:
        match word:
            case "$literal":
                return given
            case "$add":
                return sum(self.value(given))
            case "$concat":
                return "".join(self.value(given))
            case "$repeat" | "$times":
                what = self.value(given[0])
                return what * given[1] if word == "$repeat" else [what] * given[1]
            case "$keys":
                return {str(n): 0 for n in range(1, given + 1)}
            case "$object":
                return {self.value(key): self.value(item) for key, item in given}
            case "$token":
                options = self.value(given)
                return self._token(options.pop("user"), options)
        raise ValueError(f"no such value: {word}")

    def match(self, pattern: Any, got: Any) -> None:
        """Raises Mismatch unless `got` is as the pattern says; stores what it names."""
        match pattern:
            case str():
                self._match_text(pattern, got)
            case list():
                if not isinstance(got, list) or len(got) != len(pattern):
                    raise Mismatch(f"expected {len(pattern)} elements, got {got}")
                for one, other in zip(pattern, got, strict=True):
                    self.match(one, other)
            case dict() if len(pattern) == 1 and next(iter(pattern)).startswith("$"):
                self._match_word(*next(iter(pattern.items())), got)
            case dict():
                if not isinstance(got, dict):
                    raise Mismatch(f"expected an object, got {got!r}")
                for key, item in pattern.items():
                    if item == "!":
                        if key in got:
                            raise Mismatch(f"`{key}` must be absent: {got}")
                    elif key not in got:
                        raise Mismatch(f"no `{key}` in {got}")
                    else:
                        self.match(item, got[key])
            case _:
                if got != pattern or type(got) is not type(pattern):
                    raise Mismatch(f"expected {pattern!r}, got {got!r}")

    def _match_text(self, pattern: str, got: Any) -> None:
        match pattern:
            case "*":
                good = True
            case "*int":
                good = type(got) is int
            case "*str":
                good = isinstance(got, str) and bool(got)
            case "*true":
                good = got is True
            case _ if pattern.startswith("$"):
                good = self._stored.setdefault(pattern, got) == got
            case _:
                good = got == self._text(pattern)
        if not good:
            raise Mismatch(f"expected {pattern!r} ({self._stored.get(pattern)!r}), got {got!r}")

    def _match_word(self, word: str, given: Any, got: Any) -> None:
        match word:
            case "$above" | "$below":
                good = type(got) is int and (got > self.value(given) if word == "$above" else got < self.value(given))
            case "$one_of":
                good = any(self._matches(pattern, got) for pattern in given)
            case _:
                good = got == self._made(word, given)
        if not good:
            raise Mismatch(f"expected {word} {given}, got {got!r}")


def _spread(items: list[Any]) -> list[Any]:
    """A list with its `$spread` laid out; the elements as they are."""
    out: list[Any] = []
    for item in items:
        if isinstance(item, dict) and "$spread" in item:
            what = item["$spread"]
            out += [what["$times"][0]] * what["$times"][1] if isinstance(what, dict) else what
        else:
            out.append(item)
    return out
