"""Typing and presence that change faster than anybody can see: pushed once a second, the last state
always.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest

from chatd.core.coalescing import PRESENCE_BURST, TYPING_S
from tests.client import Peer
from tests.fix_server import MakeServer, Server

DEVICES = 3
FLAPS = 20  # of each device


@dataclass
class Scene:
    """Alice has several devices, bob one; both have sent. `pass_second` moves the node's clock."""

    server: Server
    alice: list[Peer]
    bob: Peer
    pass_second: Callable[[], None]


MakeScene: TypeAlias = Callable[[], Awaitable[Scene]]


@pytest.fixture
def make_scene(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> MakeScene:
    async def make() -> Scene:
        server = await make_server(rate_messages=100)
        alice = [await server.connect("alice", f"d{n}") for n in range(DEVICES)]
        bob = await server.connect("bob")
        await alice[0].say("bob")
        await bob.say("alice")
        await bob.push("entry")
        services = server.node.services
        clock, passed = services.clock, 0.0

        def pass_second() -> None:
            nonlocal passed
            passed += TYPING_S

        def later() -> float:
            return clock.now() + passed

        monkeypatch.setattr(services, "clock", SimpleNamespace(now=later, now_ms=clock.now_ms))
        monkeypatch.setattr(services.presence_push, "_now", later)
        return Scene(server, alice, bob, pass_second)

    return make


async def flap(peers: list[Peer], *requests: dict[str, str]) -> None:
    """All devices, one after the other, again and again; `requests` by turns."""
    for n in range(FLAPS):
        request = dict(requests[n % len(requests)])
        t = request.pop("t")
        for peer, id in [(peer, await peer.post(t, **request)) for peer in peers]:
            assert (await peer.reply(id))["t"] == "ok"


async def pushes(peer: Peer, t: str) -> list[dict[str, Any]]:
    """What of this type has come."""
    assert (await peer.request("ping"))["t"] == "pong"
    found, peer.pushes = [push for push in peer.pushes if push["t"] == t], []
    return found


async def test_typing_of_many_devices_is_pushed_once_a_second(make_scene: MakeScene) -> None:
    scene = await make_scene()
    await flap(scene.alice, {"t": "typing", "to": "bob"})
    assert len(await pushes(scene.bob, "typing")) == 1
    for _ in range(2):
        scene.pass_second()
        assert (await scene.bob.push("typing"))["from"] == "alice"
        await flap(scene.alice, {"t": "typing", "to": "bob"})
        assert await pushes(scene.bob, "typing") == []
    scene.server.node.chat.tick()
    assert scene.server.node.metrics.typing_merged >= 3 * DEVICES * (FLAPS - 1)


async def test_typing_held_back_is_not_pushed_once_the_message_is_there(make_scene: MakeScene) -> None:
    scene = await make_scene()
    await flap(scene.alice, {"t": "typing", "to": "bob"})
    await scene.alice[0].say("bob", "sent")
    assert len(await pushes(scene.bob, "typing")) == 1
    scene.pass_second()
    scene.server.node.chat.tick()
    assert await pushes(scene.bob, "typing") == []
    await flap(scene.alice[:1], {"t": "typing", "to": "bob"})
    assert len(await pushes(scene.bob, "typing")) == 1, "and then it is news again"


async def test_flapping_presence_is_pushed_once_a_second_and_the_last_state_stands(make_scene: MakeScene) -> None:
    scene = await make_scene()
    watched = await scene.bob.request("watch", users=["alice"])
    v = watched["presence"][0]["v"]
    scene.pass_second()
    for last in ("away", "online"):
        states = [
            {"t": "presence", "state": state}
            for state in (("online", "away") if last == "away" else ("away", "online"))
        ]
        await flap(scene.alice, *states)
        assert len(await pushes(scene.bob, "presence")) <= PRESENCE_BURST
        scene.pass_second()
        scene.server.node.chat.tick()
        told = await pushes(scene.bob, "presence")
        assert [push["state"] for push in told] == [last]
        assert told[0]["v"] > v
        v = told[0]["v"]
        scene.pass_second()
        scene.server.node.chat.tick()
        assert await pushes(scene.bob, "presence") == [], "nothing is told twice"
    assert scene.server.node.metrics.presence_merged > FLAPS
