"""Streams of frames that no server sends: nothing of them ends a client, hangs it, or raises from it.

Each stream is one connection: a good welcome or a broken one, then valid frames, mutated ones and
noise, then a cut. `CHATD_FUZZ_STREAMS=100000` runs more of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosedError

from chatd.client import Client, dial, session
from chatd.client.link import Link
from tests.until import until

STREAMS: Final = int(os.environ.get("CHATD_FUZZ_STREAMS", "600"))
ITEM: Final = {
    "c": "12", "peer": "bob", "head": 3, "floor": 1, "ts": 5, "delivered": 0, "read": 0,
    "peer_delivered": 0, "peer_read": 0, "unread": 0, "open": True,
}  # fmt: skip
WELCOME: Final = {
    "t": "welcome", "user": "me", "epoch": "e", "ts": 5, "exp": 10**13, "limits": {"history": 3, "messages": 10},
    "conversations": [ITEM], "presence": [{"user": "bob", "state": "online", "v": 1}], "more": False, "since": "s",
}  # fmt: skip
ENTRY: Final = {"t": "entry", "c": "12", "seq": 1, "ts": 5, "from": "bob", "to": "me", "kind": "message", "body": "hi"}
SAMPLES: Final[tuple[dict[str, Any], ...]] = (
    ENTRY, ENTRY | {"seq": 2, "kind": "edit", "ref": 1}, ENTRY | {"seq": 4, "from": "me", "to": "bob", "cid": "x"},
    {"t": "receipt", "c": "12", "from": "bob", "to": "me", "delivered": 1, "read": 1},
    {"t": "presence", "user": "bob", "state": "away", "v": 2}, {"t": "typing", "c": "12", "from": "bob", "to": "me"},
    {"t": "notice", "kind": "drain", "retry_ms": 1}, {"t": "ok", "id": 2, "c": "12", "seq": 1, "ts": 5},
    {"t": "ok", "id": 3, "c": "12", "entries": [ENTRY], "more": False, "head": 3, "floor": 1},
    {"t": "ok", "id": 2, "c": "12", "delivered": 1, "read": 1},
    {"t": "err", "id": 2, "code": "rate_limited", "retry_ms": 1}, {"t": "err", "id": 3, "code": "internal"},
    {"t": "err", "id": 0, "code": "bad_frame"}, WELCOME | {"id": 2}, {"t": "pong", "id": 2, "ts": 1},
)  # fmt: skip
NOISE: Final = ("", "[]", "null", "{", '{"t":1}', "{}", '{"t":"entry"}', '"x"', "\x00", '{"t":"hologram"}', "9" * 40)
ODD: Final[tuple[Any, ...]] = (
    None,
    True,
    -1,
    0,
    2**53,
    2**63,
    10**30,
    1.5,
    1e300,
    "",
    "12",
    "1",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
)


def mutated(rng: random.Random, value: Any) -> Any:
    """The same with some of its parts gone, doubled, or of another type."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        out = dict(value)
        for _ in range(rng.randint(1, 2)):
            key = rng.choice(list(value))
            match rng.randrange(4):
                case 0:
                    out.pop(key, None)
                case 1:
                    out[key] = mutated(rng, value[key])
                case 2:
                    out[key] = rng.choice(ODD)
                case _:
                    out[rng.choice(list(value))] = value[key]
        return out
    if isinstance(value, list) and value and rng.random() < 0.7:
        return [mutated(rng, rng.choice(value)) for _ in range(rng.randint(0, 3))]
    return rng.choice(ODD)


class Stream:
    """A WebSocket to nobody: says a stream's frames, and then it is cut."""

    close_code = 1006
    close_reason = ""

    def __init__(self, frames: Callable[[int], list[str]]) -> None:
        self._frames = frames
        self._said: list[str] = []
        self._hello = asyncio.Event()

    async def send(self, text: str) -> None:
        if not self._hello.is_set():
            self._said = self._frames(json.loads(text)["id"])[::-1]
            self._hello.set()

    async def recv(self) -> str:
        await self._hello.wait()
        await asyncio.sleep(0)  # the client's loops have their turns
        if self._said:
            return self._said.pop()
        raise ConnectionClosedError(None, None)

    async def close(self, _code: int = 1000, _reason: str = "") -> None: ...


class Fuzz:
    """Streams by a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.count = 0

    def frames(self, hello: int) -> list[str]:
        rng, welcome = self.rng, WELCOME | {"id": hello}
        self.count += 1
        out = [json.dumps(mutated(rng, welcome) if rng.random() < 0.2 else welcome)]
        for _ in range(rng.randint(0, 12)):
            sample = rng.choice(SAMPLES)
            if "id" in sample:
                sample = sample | {"id": hello + rng.randint(0, 3)}
            kind = rng.random()
            out.append(rng.choice(NOISE) if kind < 0.1 else json.dumps(mutated(rng, sample) if kind < 0.7 else sample))
        return out

    async def ends(self, streams: int) -> dict[str, int]:
        """How clients ended that met so many; "": they did not, and were closed."""
        ends: dict[str, int] = {}
        while self.count < streams:
            client = Client("ws://nobody/ws", token=lambda _renew: "t", device="d")
            opening, using = asyncio.create_task(client.open()), asyncio.create_task(_use(client))
            enough = min(self.count + 500, streams)
            await until(lambda: self.count >= enough or client.line.state == "stopped")
            reason = client.line.reason if client.line.state == "stopped" else ""
            ends[reason] = ends.get(reason, 0) + 1
            opening.cancel()
            await client.close(drain=False)
            using.cancel()
            await asyncio.gather(opening, using, return_exceptions=True)
        return ends


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> Fuzz:
    """Waits are none, and a connection is a stream."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    fuzz = Fuzz(seed)

    async def opened(_url: str, _options: Mapping[str, Any] | None = None) -> Link:
        return Link(cast(ClientConnection, Stream(fuzz.frames)))

    monkeypatch.setattr(Link, "open", opened)
    monkeypatch.setattr(dial.Dial, "_backoff", lambda _self, *, at_once: 0.0)
    monkeypatch.setattr(dial.Dial, "_named", lambda _self, _wait_s: 0.0)
    monkeypatch.setattr("chatd.client.link.CONNECT_S", 0.01)
    monkeypatch.setattr(session, "CURSOR_DELAY_S", 0.0)
    return fuzz


async def test_no_stream_ends_a_client_by_a_bug_or_hangs_it(fuzz: Fuzz) -> None:
    """Some may end it by what they say: another user, a refusal of hello for good."""
    ends = await fuzz.ends(STREAMS)
    print(ends)
    assert "bug" not in ends


async def test_a_bug_is_found(fuzz: Fuzz, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatd.client.frames.receipt", lambda frame, _user: frame["seeded"])
    assert "bug" in await fuzz.ends(100)


async def _use(client: Client) -> None:
    """What an app does, so that all parts are at work."""
    while client.line.state != "online":
        await asyncio.sleep(0)
    for n in range(20):
        client.submit("bob", f"{n}")
    await client.watch(["bob"])
    async for entry in client.entries(resets=True):
        assert entry.c is None or isinstance(entry.c, str)
