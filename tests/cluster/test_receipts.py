"""A receipt never passes the entry that it speaks of, also where that entry was lost on its way to this node."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chatd.envelope import Codec, Entry
from tests.cluster.test_devices import MakePair, make_pair
from tests.fix_server import Frame, Peer

pytestmark = pytest.mark.cluster

__all__ = ["make_pair"]


async def until_read(peer: Peer, seq: int) -> list[Frame]:
    """What is pushed until a receipt says that it was read so far."""
    frames: list[Frame] = []
    while not frames or frames[-1]["t"] != "receipt" or frames[-1]["read"] < seq:
        frame = await peer.push()
        if frame["t"] in ("entry", "receipt"):
            frames.append(frame)
    return frames


@pytest.mark.parametrize("receipt_lost", [False, True], ids=["the receipt arrives", "the feed alone tells of both"])
async def test_a_receipt_waits_for_the_entry_that_was_lost(make_pair: MakePair, monkeypatch: pytest.MonkeyPatch, receipt_lost: bool) -> None:
    a, b = await make_pair()
    alice = await a.connect("alice", "phone")
    bob = await b.connect("bob")
    tablet = await b.connect("alice", "tablet")
    c = (await alice.say("bob"))["c"]
    await bob.push("entry")
    await bob.say("alice")
    await alice.push("entry")
    assert b.node.cluster is not None
    publish = b.node.cluster.bus.publish

    def lossy(user: Any, data: bytes) -> None:
        if not receipt_lost and not isinstance(Codec.decode(data), Entry):
            publish(user, data)

    monkeypatch.setattr(b.node.cluster.bus, "publish", lossy)
    assert (await bob.say("alice", "lost"))["seq"] == 3
    await tablet.request("read", c=c, seq=3)
    frames = await until_read(alice, 3)
    assert [frame["seq"] for frame in frames if frame["t"] == "entry"] == [3], "the entry is there by then"
    head = 2
    for frame in frames:
        head = frame.get("seq", head)
        assert frame["t"] == "entry" or max(frame["read"], frame["delivered"]) <= head, "no receipt is ahead of what was delivered"
    assert not a.node.delivery._early


async def test_a_receipt_for_what_will_never_be_moves_nothing(make_pair: MakePair) -> None:
    a, b = await make_pair()
    alice, bob = await a.connect("alice"), await b.connect("bob")
    c = (await alice.say("bob"))["c"]
    assert a.node.cluster is not None
    codec = Codec("00" * 8, alice.welcome["epoch"])
    conv = a.node.registry.convs[int(c)]  # type: ignore[index]
    a.node.cluster.relay.heard(conv.a, codec.receipt(int(c), 1, 1 << 50, 1 << 50))
    await bob.push("entry")
    await bob.request("read", c=c, seq=1)
    frames = await until_read(alice, 1)
    assert frames[-1]["read"] == 1
    await asyncio.sleep(0)
    assert conv.cursor(1) == (1, 1)
