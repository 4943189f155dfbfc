"""What happens on other nodes, or in other sessions, while a hello is between its listing and its welcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import chatd.bus
from chatd.ids import ConvId, UserId
from chatd.server import Node
from chatd.store import ConvRow
from tests.fix_redis import OwnRedis
from tests.fix_server import MakeServer
from tests.integration.test_interleavings_session import befriended
from tests.maps import wrong

pytestmark = pytest.mark.cluster


class Held:
    """Answers of one method of a store, held back until `go_on`; `asked` is set once there is one to hold."""

    def __init__(self, node: Node, name: str, monkeypatch: pytest.MonkeyPatch, holds: Callable[..., bool] = lambda *_: True) -> None:
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()
        real = getattr(node.store, name)

        async def method(*args: Any) -> Any:
            answer = await real(*args)
            if holds(*args):
                self.asked.set()
                await self.go_on.wait()
            return answer

        monkeypatch.setattr(node.store, name, method)


async def test_what_the_others_listing_brought_is_not_missing(
    make_server: MakeServer, own_redis: OwnRedis, fresh_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bob's listing is older than alice's first entry to him, written on another node, and she comes to his node before his welcome."""
    one, two = [await make_server(database_url=fresh_db, redis_url=own_redis.url) for _ in range(2)]
    mark = (await two.connect("bob", "phone")).welcome
    alice = await one.connect("alice")
    await two.peers[0].close()
    two.node.registry.users.clear()  # bob is not held there any more
    two.node.registry._idle.clear()
    feed = Held(two.node, "feed", monkeypatch)
    two.node.cluster.feed.wake()  # type: ignore[union-attr]
    await feed.asked.wait()  # what this answer does not have, the feed does not tell before `go_on`
    listing = Held(two.node, "list_changed", monkeypatch, lambda user, *_: user == "bob")
    bob = await two.open()
    id = await bob.post("hello", v=1, token=two.token("bob"), device="phone", since=mark["since"], epoch=mark["epoch"], cursors={})
    await listing.asked.wait()
    monkeypatch.setattr(chatd.bus, "DROPPED", 1.0)
    first = await alice.say("bob", "1")
    again = await two.connect("alice")
    listing.go_on.set()
    welcome = await bob.reply(id)
    assert (welcome["t"], welcome["conversations"]) == ("welcome", [])
    second = await again.say("bob", "2")
    feed.go_on.set()
    got = [await bob.push("entry") for _ in range(2)]
    assert [(e["c"], e["seq"], e["body"]) for e in got] == [(first["c"], 1, "1"), (second["c"], 2, "2")]
    await bob.quiet()


async def test_what_the_feed_finds_of_another_log_is_not_mixed(make_server: MakeServer, own_redis: OwnRedis) -> None:
    """Its row was Bob's and Dave's under the id that memory has for Alice and Bob: Dave was given the object of these two."""
    server = await make_server(redis_url=own_redis.url)
    alice, bob, c = await befriended(server)
    dave = await server.connect("dave")
    server.node.cluster._found([ConvRow(ConvId(int(c)), UserId("bob"), UserId("dave"), 3, 1, 3, 0, 0)])  # type: ignore[union-attr]
    assert wrong(server.node) == []
    for peer in (alice, bob, dave):
        assert await peer.closed() == 1012
