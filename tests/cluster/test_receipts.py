"""A receipt never passes the entry that it speaks of, also where that one was lost on its way to
this node; nobody gets one who was not answered.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chatd.wire.node_messages import Codec, Entry, Receipt
from tests.client import Frame, Peer
from tests.cluster.test_devices import MakePair, make_pair
from tests.fix_server import Server
from tests.until import until

pytestmark = pytest.mark.cluster

__all__ = ["make_pair"]

CID = "00000000-0000-4000-8000-000000000001"


async def until_read(peer: Peer, seq: int) -> list[Frame]:
    """What is pushed until a receipt says that it was read so far."""
    frames: list[Frame] = []
    while not frames or frames[-1]["t"] != "receipt" or frames[-1]["read"] < seq:
        frame = await peer.push()
        if frame["t"] in ("entry", "receipt"):
            frames.append(frame)
    return frames


@pytest.mark.parametrize("receipt_lost", [False, True], ids=["the receipt arrives", "the feed alone tells of both"])
async def test_a_receipt_waits_for_the_entry_that_was_lost(
    make_pair: MakePair, monkeypatch: pytest.MonkeyPatch, receipt_lost: bool
) -> None:
    a, b = await make_pair()
    alice = await a.connect("alice", "phone")
    bob = await b.connect("bob")
    tablet = await b.connect("alice", "tablet")
    c = (await alice.say("bob"))["c"]
    await bob.push("entry")
    await bob.say("alice")
    await alice.push("entry")
    assert b.node.cluster is not None
    publish = b.node.cluster.pubsub.publish

    def lossy(user: Any, data: bytes) -> None:
        if not receipt_lost and not isinstance(Codec.decode(data), Entry):
            publish(user, data)

    monkeypatch.setattr(b.node.cluster.pubsub, "publish", lossy)
    assert (await bob.say("alice", "lost"))["seq"] == 3
    await tablet.request("read", c=c, seq=3)
    frames = await until_read(alice, 3)
    assert [frame["seq"] for frame in frames if frame["t"] == "entry"] == [3], "the entry is there by then"
    head = 2
    for frame in frames:
        head = frame.get("seq", head)
        assert frame["t"] == "entry" or max(frame["read"], frame["delivered"]) <= head, (
            "no receipt is ahead of what was delivered"
        )
    assert not a.node.delivery.receipts.held


async def test_a_receipt_for_what_will_never_be_moves_nothing(make_pair: MakePair) -> None:
    a, b = await make_pair()
    alice, bob = await a.connect("alice"), await b.connect("bob")
    c = (await alice.say("bob"))["c"]
    assert a.node.cluster is not None
    codec = Codec("00" * 8, alice.welcome["epoch"])
    conv = a.node.registry.convs[int(c)]  # type: ignore[index]
    a.node.cluster.relay.heard(conv.a, codec.receipt(int(c), 1, 1 << 50, 1 << 50))
    await bob.push("entry")
    await bob.say("alice")
    await bob.request("read", c=c, seq=2)
    frames = await until_read(alice, 2)
    assert frames[-1]["read"] == 2
    await asyncio.sleep(0)
    assert conv.cursor(1) == (2, 2)


# ---- who was not answered ------------------------------------------------------------------------


def loses(server: Server, monkeypatch: pytest.MonkeyPatch, *kinds: type) -> None:
    """What this node publishes of these kinds gets lost."""
    assert server.node.cluster is not None
    publish = server.node.cluster.pubsub.publish
    lossy = lambda user, data: None if isinstance(Codec.decode(data), kinds) else publish(user, data)  # noqa: E731
    monkeypatch.setattr(server.node.cluster.pubsub, "publish", lossy)


async def told(peer: Peer) -> tuple[int, int, bool]:
    (item,) = (await peer.request("conversations"))["conversations"]
    return item["peer_delivered"], item["peer_read"], item["open"]


@pytest.mark.parametrize(
    "lost", [(), (Receipt,), (Entry,), (Entry, Receipt)], ids=["none", "receipts", "entries", "both"]
)
async def test_an_answer_on_another_node_brings_the_receipts(
    make_pair: MakePair, monkeypatch: pytest.MonkeyPatch, lost: tuple[type, ...]
) -> None:
    """Right: until it, whichever node the newcomer asks, nothing; behind its entry, what was read by then.

    Also of what the feed alone tells.
    """
    a, b = await make_pair(cursor_flush_ms=10)
    newcomer, tablet = await a.connect("newcomer"), await b.connect("newcomer", "tablet")
    alice = await b.connect("alice")
    c = (await newcomer.say("alice"))["c"]
    await alice.push("entry")
    await tablet.push("entry")
    loses(b, monkeypatch, *lost)
    await alice.request("ack", c=c, seq=1)
    await alice.request("read", c=c, seq=1)
    conv = a.node.registry.convs[int(c)]  # type: ignore[index]
    await until(lambda: 1 in (conv.a_read, conv.b_read), "the newcomer's node knows what it must not tell")
    for device in (newcomer, tablet):
        assert await told(device) == (0, 0, False)
        await device.quiet()
    for server in (a, b):
        (item,) = (await server.connect("newcomer", "d3")).welcome["conversations"]
        assert (item["peer_delivered"], item["peer_read"], item["open"]) == (0, 0, False)
    await alice.say("newcomer")
    for device in (newcomer, tablet):
        frames = await until_read(device, 1)
        assert [(frame["t"], frame.get("seq"), frame.get("read")) for frame in frames] == [
            ("entry", 2, None),
            ("receipt", None, 1),
        ]
        assert await told(device) == (1, 1, True)


@pytest.mark.parametrize("first", ["the answer", "the receipt"])
async def test_a_read_beside_the_first_answer_on_another_node_is_told(
    make_pair: MakePair, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Alice reads by one device while another one answers, on two nodes: the newcomer's node hears
    of either first. Right: both, and none before the answer; the numbers only rise.
    """
    a, b = await make_pair()
    newcomer, phone, desk = (
        await a.connect("newcomer"),
        await b.connect("alice", "phone"),
        await a.connect("alice", "desk"),
    )
    c = (await newcomer.say("alice"))["c"]
    assert (await newcomer.say("alice"))["seq"] == 2
    for _ in range(2):
        await phone.push("entry")
    assert a.node.cluster is not None
    heard, held = a.node.cluster.relay.heard, []
    kind = Receipt if first == "the answer" else Entry

    def hold(user: Any, data: bytes) -> None:
        if isinstance(Codec.decode(data), kind):
            held.append((user, data))
        else:
            heard(user, data)

    monkeypatch.setattr(a.node.cluster.pubsub.listener, "heard", hold)
    await desk.request("ack", c=c, seq=1)  # on the newcomer's node, which does not know of the answer
    await phone.request("read", c=c, seq=2)
    ids = await phone.post("send", to="newcomer", cid=CID, body="answer")
    assert (await phone.reply(ids))["seq"] == 3
    if first == "the answer":
        assert (await newcomer.push())["seq"] == 3
        assert (await newcomer.push())["delivered"] == 1, "what this node knows by then"
    else:
        await newcomer.quiet()
    monkeypatch.undo()
    for user, data in held:
        heard(user, data)
    frames = await until_read(newcomer, 2)
    assert [frame["t"] for frame in frames] == ([] if first == "the answer" else ["entry"]) + ["receipt"]
    assert await told(newcomer) == (2, 2, True)
