"""Among nodes, too, every held conversation of a held user is linked to them: what others tell, and
what the feed finds.
"""

from __future__ import annotations

from typing import Any

import pytest

from chatd.postgres.faults import Outage
from tests.cluster.test_devices import MakePair, make_pair
from tests.fix_server import Server
from tests.maps import check_maps, wrong

pytestmark = pytest.mark.cluster

__all__ = ["make_pair"]

OPENED_MAX = 2  # in an hour


@pytest.mark.parametrize("bus_loses", [False, True], ids=["heard over the bus", "found by the feed"])
async def test_a_row_made_here_gets_its_first_entry_on_another_node(
    make_pair: MakePair, monkeypatch: pytest.MonkeyPatch, bus_loses: bool
) -> None:
    """alice's first send makes the row on node a and is refused; bob says hello there; alice's
    other device sends it on node b.
    """
    a, b = await make_pair(rate_messages=1_000, new_conversations_per_hour=OPENED_MAX)
    assert b.node.cluster is not None
    if bus_loses:
        monkeypatch.setattr(b.node.cluster.pubsub, "publish", lambda user, data: None)
    alice, tablet = await a.connect("alice", "phone"), await b.connect("alice", "tablet")
    with monkeypatch.context() as patch:
        lanes_away(a, patch)
        assert (await alice.say("bob"))["code"] == "unavailable"
    bob = await a.connect("bob", watch=["alice"])
    assert wrong(a.node) == []
    for n in range(OPENED_MAX):
        assert (await bob.say(f"zoe{n}"))["t"] == "ok"
    assert (await tablet.say("bob"))["seq"] == 1
    assert (await bob.push("entry"))["from"] == "alice"
    assert (await bob.say("alice"))["seq"] == 2
    assert (await bob.push("presence"))["state"] == "online"
    await check_maps(a.node)
    await check_maps(b.node)


def lanes_away(server: Server, patch: pytest.MonkeyPatch) -> None:
    async def away(batch: Any) -> Any:
        raise Outage("not now", is_unknown=False)

    for lane in server.node.store.lanes.all:
        patch.setattr(lane, "_append", away)
