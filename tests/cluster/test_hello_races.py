"""What happens on other nodes, or in other sessions, while a hello is between its listing and its
welcome.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

import chatd.cluster.pubsub
from chatd import errors
from chatd.ids import ConvId, UserId
from chatd.postgres.rows import ConvRow
from chatd.server import Node
from tests.fix_redis import OwnRedis
from tests.fix_server import MakeServer
from tests.integration.test_interleavings_session import befriended
from tests.maps import wrong

pytestmark = pytest.mark.cluster


class Held:
    """Answers of one method of a store, held back until `go_on`; `asked` is set once there is one
    to hold.
    """

    def __init__(
        self, node: Node, name: str, monkeypatch: pytest.MonkeyPatch, holds: Callable[..., bool] = lambda *_: True
    ) -> None:
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
    """Bob's listing is older than alice's first entry to him, written on another node, and she
    comes to his node before his welcome.
    """
    one, two = [await make_server(database_url=fresh_db, redis_url=own_redis.url) for _ in range(2)]
    mark = (await two.connect("bob", "phone")).welcome
    alice = await one.connect("alice")
    await two.peers[0].close()
    two.node.registry.users.clear()  # bob is not held there any more
    two.node.registry._idle.clear()
    feed = Held(two.node, "feed", monkeypatch)
    two.node.cluster.change_feed.wake()  # type: ignore[union-attr]
    await feed.asked.wait()  # what this answer does not have, the feed does not tell before `go_on`
    listing = Held(two.node, "list_changed", monkeypatch, lambda user, *_: user == "bob")
    bob = await two.open()
    id = await bob.post(
        "hello", v=1, token=two.token("bob"), device="phone", since=mark["since"], epoch=mark["epoch"], cursors={}
    )
    await listing.asked.wait()
    monkeypatch.setattr(chatd.cluster.pubsub, "DROPPED", 1.0)
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


@pytest.mark.parametrize("has_mark", [True, False])
async def test_a_mark_does_not_cover_what_was_not_delivered_yet(
    make_server: MakeServer, own_redis: OwnRedis, fresh_db: str, monkeypatch: pytest.MonkeyPatch, has_mark: bool
) -> None:
    """Bob's node knows of alice's first entry by his listing alone, and he leaves before it has
    read it: the next listing has it again.
    """
    one, two = [await make_server(database_url=fresh_db, redis_url=own_redis.url) for _ in range(2)]
    stays = await two.connect("bob", "tablet")
    asks: dict[str, Any] = (
        {"cursors": {}, "since": stays.welcome["since"], "epoch": stays.welcome["epoch"]} if has_mark else {}
    )
    feed, gap = Held(two.node, "feed", monkeypatch), Held(two.node, "entries_many", monkeypatch)
    two.node.cluster.change_feed.wake()  # type: ignore[union-attr]
    await feed.asked.wait()
    monkeypatch.setattr(chatd.cluster.pubsub, "DROPPED", 1.0)
    sent = await (await one.connect("alice")).say("bob", "1")
    left = await two.connect("bob", "phone", **asks)
    assert [(item["c"], item["head"]) for item in left.welcome["conversations"]] == [(sent["c"], 0)]
    await gap.asked.wait()
    await left.close()
    gap.go_on.set()
    feed.go_on.set()
    assert (await stays.push("entry"))["seq"] == 1
    back = await two.connect("bob", "phone", cursors={}, since=left.welcome["since"], epoch=left.welcome["epoch"])
    assert [(item["c"], item["head"]) for item in back.welcome["conversations"]] == [(sent["c"], 1)]
    assert back.welcome["since"] != left.welcome["since"], "what was told is covered"


async def test_what_the_feed_finds_of_another_log_is_not_mixed(make_server: MakeServer, own_redis: OwnRedis) -> None:
    """Its row was Bob's and Dave's under the id that memory has for Alice and Bob:

    Dave was given the object of these two.
    """
    server = await make_server(redis_url=own_redis.url)
    alice, bob, c = await befriended(server)
    dave = await server.connect("dave")
    server.node.cluster._found([ConvRow(ConvId(int(c)), UserId("bob"), UserId("dave"), 3, 1, 3, 0, 0)])  # type: ignore[union-attr]
    assert wrong(server.node) == []
    for peer in (alice, bob, dave):
        assert await peer.closed() == 1012


async def test_a_hello_that_fails_after_it_listed_takes_nothing_from_another_that_went_by_its_listing(
    make_server: MakeServer, own_redis: OwnRedis, fresh_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bob's phone lists, and fails when it looks again; his tablet came between.

    What begins then is pushed to it.
    """
    one, two = [await make_server(database_url=fresh_db, redis_url=own_redis.url) for _ in range(2)]
    alice = await one.connect("alice")
    store, relay = two.node.store, two.node.services.others
    monkeypatch.setattr(relay, "pages", itertools.count().__next__)  # the feed was read meanwhile: all look again
    real, asked, go_on = store.list_changed, asyncio.Event(), asyncio.Event()
    calls = 0

    async def list_changed(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            asked.set()
            await go_on.wait()
            raise errors.Unavailable("on purpose", retry_ms=10)
        return await real(*args)

    monkeypatch.setattr(store, "list_changed", list_changed)
    phone = await two.open()
    id = await phone.post("hello", v=1, token=two.token("bob"), device="phone")
    await asked.wait()
    tablet = await two.connect("bob", "tablet")
    go_on.set()
    assert (await phone.reply(id))["code"] == "unavailable"
    await alice.say("bob", "1")
    assert (await tablet.push("entry"))["body"] == "1"
    assert two.node.registry.users[UserId("bob")].loaded
