"""The random walks of the conformance kit: chatd passes, and a server with one fault does not.

The fault is put in by a proxy between the two, which understands frames and spoils some of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from chatd.conformance.launch import ServerPlace
from chatd.conformance.schemas import FrameChecks
from chatd.conformance.tokens import TokenMaker
from chatd.conformance.values import Mismatch
from chatd.conformance.walk import Walk
from tests.client import dial
from tests.fix_server import Server

Frame = dict[str, Any]
Spoil = Callable[[Frame], list[Frame]]
SEEDS: Final = range(4)  # one of them must meet the fault
STEPS: Final = 40
WAIT_S: Final = 1.0  # for what a fault keeps away
CLEAN_WAIT_S: Final = 15.0


@contextlib.asynccontextmanager
async def spoiled(url: str, make: Callable[[], Spoil]) -> AsyncIterator[str]:
    """The URL of a proxy; what the server says on each connection goes through a `make()`."""

    async def carry(ws: ServerConnection) -> None:
        spoil = make()
        upstream = await dial(url, max_size=None)

        async def requests() -> None:
            async for data in ws:
                await upstream.send(data)

        async def answers() -> None:
            async for data in upstream:
                for frame in spoil(json.loads(data)):
                    await ws.send(json.dumps(frame))

        ways = [asyncio.create_task(requests()), asyncio.create_task(answers())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            upstream.transport.abort()
            ws.transport.abort()

    async with serve(carry, "127.0.0.1", 0, subprotocols=[Subprotocol("chatd.v1")], compression=None) as server:
        (listening,) = server.sockets
        yield f"ws://127.0.0.1:{listening.getsockname()[1]}/ws"
        for connection in server.connections:
            connection.transport.abort()


def nth(t: str, n: int, change: Callable[[Frame], list[Frame]]) -> Callable[[], Spoil]:
    """Changes the n-th frame of this type on a connection."""

    def make() -> Spoil:
        count = 0

        def spoil(frame: Frame) -> list[Frame]:
            nonlocal count
            if frame["t"] != t:
                return [frame]
            count += 1
            return change(frame) if count == n else [frame]

        return spoil

    return make


def each(is_it: Callable[[Frame], bool], change: Callable[[Frame], list[Frame]]) -> Callable[[], Spoil]:
    """Changes all such frames."""
    return lambda: lambda frame: change(frame) if is_it(frame) else [frame]


def swap() -> Spoil:
    """The second and the third entry of a connection change places, if they are of one log."""
    seen: list[Frame] = []

    def spoil(frame: Frame) -> list[Frame]:
        if frame["t"] != "entry":
            return [frame]
        seen.append(frame)
        if len(seen) == 2:
            return []
        if len(seen) == 3:
            return [frame, seen[1]]
        return [frame]

    return spoil


def nothing(_: Frame) -> list[Frame]:
    return []


def page_without_one(frame: Frame) -> list[Frame]:
    entries = frame["entries"]
    return [{**frame, "entries": entries[:1] + entries[2:]}]


FAULTS: Final[dict[str, tuple[Callable[[], Spoil], str]]] = {
    "one entry is dropped": (nth("entry", 2, nothing), "each entry reaches|no entry is left out"),
    "one entry is doubled": (nth("entry", 2, lambda frame: [frame, frame]), "each entry once"),
    "two entries are swapped": (swap, "no entry is left out|each entry once"),
    "an entry has another text": (nth("entry", 1, lambda f: [{**f, "body": "other"}]), "an entry says what was sent"),
    "an entry has another sender": (nth("entry", 1, lambda f: [{**f, "from": f["to"]}]), "an entry says what was sent"),
    "dup is left out": (
        each(lambda f: "dup" in f, lambda f: [{k: v for k, v in f.items() if k != "dup"}]),
        "a retry is answered|a cid is done once|each entry once|no entry is left out",
    ),
    "an ok has another seq": (
        nth("ok", 1, lambda f: [{**f, "seq": f["seq"] + 1}] if "seq" in f and "ts" in f else [f]),
        "no entry is left out|seqs without holes|each entry once|a retry|entries stand in the order",
    ),
    "receipts are dropped": (each(lambda f: f["t"] == "receipt", nothing), "receipts arrive"),
    "receipts go back": (
        nth("receipt", 2, lambda f: [f, {**f, "delivered": f["delivered"] - 1}]),
        "cursors only rise",
    ),
    "presence is dropped": (each(lambda f: f["t"] == "presence", nothing), "presence is seen"),
    "presence of strangers is told": (
        each(lambda f: f["t"] == "welcome" and "presence" in f, lambda f: [
            {**f, "presence": [{**one, "state": "online", "v": 2**52} for one in f["presence"]]}
        ]),
        "presence is seen",
    ),
    "a page lacks an entry": (each(lambda f: len(f.get("entries", [])) > 2, page_without_one), "a page is an unbroken"),
    "a page says that there is no more": (
        each(lambda f: f.get("more") is True and "entries" in f, lambda f: [{**f, "more": False}]),
        "a page begins where",
    ),
    "unread is one too few": (
        each(lambda f: "conversations" in f and f["t"] == "ok", lambda f: [
            {**f, "conversations": [{**one, "unread": max(0, one["unread"] - 1)} for one in f["conversations"]]}
        ]),
        "a list tells heads, cursors and unread",
    ),
    "a list lacks a conversation": (
        each(lambda f: "conversations" in f and f["t"] == "ok", lambda f: [{**f, "conversations": []}]),
        "a list has all conversations",
    ),
    "the connection ends": (nth("entry", 3, lambda f: [f] * 0 + [{"t": "nonsense"}]), "each entry reaches|no entry is"),
}  # fmt: skip


def place(server: Server, url: str) -> ServerPlace:
    return ServerPlace(url, TokenMaker(lambda user, _: server.token(user)))


async def reason(server: Server, url: str, seed: object, wait_s: float) -> str:
    try:
        await Walk(place(server, url), random.Random(f"{seed}"), STEPS, wait_s).run()
    except Mismatch as e:
        return str(e)
    return ""


async def test_chatd_keeps_the_rules(server: Server) -> None:
    for seed in SEEDS:
        assert await reason(server, server.url, seed, CLEAN_WAIT_S) == ""


async def test_a_proxy_that_spoils_nothing_is_no_fault(server: Server) -> None:
    async with spoiled(server.url, lambda: lambda frame: [frame]) as url:
        assert await reason(server, url, 0, CLEAN_WAIT_S) == ""


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_seen_and_the_rule_is_named(server: Server, fault: str) -> None:
    make, rules = FAULTS[fault]
    found = []
    async with spoiled(server.url, make) as url:
        for seed in SEEDS:
            if said := await reason(server, url, seed, WAIT_S):
                found.append(said)
                break
    assert found, "no walk has seen it"
    assert any(found[0].startswith(rule) for rule in rules.split("|")), found[0]
    assert "the last actions" in found[0]


async def test_the_same_seed_does_the_same(server: Server) -> None:
    done = []
    for _ in range(2):
        walk = Walk(place(server, server.url), random.Random("7"), STEPS, CLEAN_WAIT_S)
        await walk.run()
        lines = [line.replace(walk.users[0].partition("-")[2], "") for line in walk._done]
        done.append([line.partition(" up to ")[0] for line in lines])  # up to which seq is a matter of what has come
    assert done[0][:8] == done[1][:8]  # further on, what a cut line carried may differ


async def test_a_walk_meets_each_rule(server: Server) -> None:
    """A rule that nothing exercises would hold for ever."""
    checks: set[str] = set()
    judged = FrameChecks()
    for seed in SEEDS:
        walk = Walk(place(server, server.url), random.Random(f"{seed}"), STEPS, CLEAN_WAIT_S)
        await walk.run()
        checks |= walk.checks.keys()
        for device in walk.devices:
            for schema, frame in device.judged:
                judged.judge(schema, frame, f"walk {seed}")
    rules = "order entries copies durable retries refusals cursors receipts presence history lists logs typing"
    assert checks == {*rules.split(), "order sent"}
    assert [case.reason for case in judged.cases() if "problems" in case.reason] == []
