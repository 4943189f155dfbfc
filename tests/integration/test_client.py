"""The Python client against a real chatd on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import functools
import io
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from chatd.client import (
    Client,
    Connection,
    ConnectionLost,
    Entry,
    Notice,
    Presence,
    Receipt,
    RequestError,
    Stopped,
    Typing,
)
from chatd.client.tail import tail
from chatd.ids import UserId
from tests.fix_fake_chatd import NoJitter
from tests.fix_server import MakeServer, Server
from tests.proxy import Proxy
from tests.until import until

Test: TypeAlias = Callable[..., Awaitable[None]]

DEADLINE_S = 40.0
CUTS = 14
SENDS = 200


def bounded(test: Test) -> Test:
    """What hangs fails. (A fixture cannot do it: it runs in a task of its own.)"""

    @functools.wraps(test)
    async def run(*args: Any, **keys: Any) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await test(*args, **keys)

    return run


def make(server: Server, user: str, device: str = "d", **keys: Any) -> Client:
    settings: dict[str, Any] = {"token": server.token(user), "device": device, "rng": random.Random(1)}
    return Client(server.url, **settings | keys)


async def take(client: Client, count: int) -> list[Entry]:
    entries = client.entries()
    return [await anext(entries) for _ in range(count)]


@bounded
async def test_two_people_and_three_devices_see_one_log(server: Server) -> None:
    async with make(server, "ann", "phone") as phone, make(server, "ann", "desk") as desk, make(server, "bob") as bob:
        sent = await phone.send("bob", "hi")
        assert (sent.seq, sent.dup) == (1, False)
        await bob.send("ann", "hello")
        await desk.edit("bob", 1, "hi!")
        await phone.delete("bob", 1)
        logs = [[(e.seq, e.kind, e.body, e.ref) for e in await take(client, 4)] for client in (phone, desk, bob)]
        assert (
            logs[0]
            == logs[1]
            == logs[2]
            == [
                (1, "message", "hi", None),
                (2, "message", "hello", None),
                (3, "edit", "hi!", 1),
                (4, "delete", None, 1),
            ]
        )
        page = await bob.history("ann")
        assert [(e.seq, e.body) for e in page.entries] == [(1, None), (2, "hello"), (3, None), (4, None)]
        assert page.entries[0].deleted is not None
        with pytest.raises(RequestError, match="not_author"):
            await bob.edit("ann", 1, "not mine")


@bounded
async def test_presence_receipts_and_typing_arrive(server: Server) -> None:
    async with make(server, "ann") as ann, make(server, "bob") as bob:
        await ann.send("bob", "hi")
        await bob.send("ann", "hello")
        assert [p.state for p in await ann.watch(["bob"])] == ["online"]
        for e in await take(bob, 2):
            await bob.read("ann", e.seq)
        await bob.typing("ann")
        await bob.set_away(True)
        seen: dict[type, Any] = {}
        async for event in ann.events():
            seen[type(event)] = event
            if seen.get(Receipt) and seen[Receipt].read == 2 and seen.get(Typing) and seen[Presence].state == "away":
                break
        assert (seen[Receipt].user, seen[Typing].user) == ("bob", "bob")


@bounded
async def test_an_outbox_of_forty_drains_at_the_allowed_rate_in_order_and_without_a_penalty(
    make_server: MakeServer,
) -> None:
    """Two devices share the rate, and neither knows what the other takes of it."""
    server = await make_server(rate_messages=10, rate_per_ms=300)
    texts = [f"{n}" for n in range(20)]
    async with make(server, "ann", "a") as phone, make(server, "ann", "b") as desk, make(server, "bob") as bob:
        await asyncio.gather(*(one.send("bob", f"{one.device}{text}") for text in texts for one in (phone, desk)))
        got = await take(bob, 40)
        for device in "ab":
            assert [e.body for e in got if e.body and e.body[0] == device] == [f"{device}{text}" for text in texts]
        assert [e.seq for e in got] == list(range(1, 41))
    assert server.node.services.metrics.limit_hits > 0, "the limit was never met: this test shows nothing"


@bounded
async def test_many_conversations_over_the_rate_are_all_served(make_server: MakeServer) -> None:
    server = await make_server(rate_messages=10, rate_per_ms=300)
    async with make(server, "ann") as ann:
        await asyncio.gather(*(ann.send(f"u{n % 6}", f"{n}") for n in range(36)))
        for n in range(6):
            assert [e.body for e in (await ann.history(f"u{n}")).entries] == [f"{m}" for m in range(n, 36, 6)]


@pytest.mark.parametrize("seed", [1, 2])
@bounded
async def test_a_line_that_is_cut_again_and_again_loses_and_doubles_nothing(make_server: MakeServer, seed: int) -> None:
    """At random instants, also with the answers swallowed before the cut; sends pipelined, small queues.

    The log is the judge.
    """
    server = await make_server(rate_messages=10_000, resync_entries_max=30)
    rng = random.Random(seed)
    async with Proxy(server.port) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/ws"
        ann = Client(url, token=server.token("ann"), device="d", rng=NoJitter(), queue_max=20)
        bob = Client(url, token=server.token("bob"), device="d", rng=NoJitter(), queue_max=20)
        async with ann, bob:

            async def cuts() -> None:
                for n in range(CUTS):
                    await asyncio.sleep(rng.uniform(0.01, 0.1))
                    if n % 2:
                        proxy.swallow("answers")
                        await asyncio.sleep(rng.uniform(0.0, 0.03))
                    proxy.heal()
                    proxy.drop()

            async def talk(one: Client, peer: str) -> list[int]:
                seqs: list[int] = []
                for n in range(0, SENDS, 5):
                    seqs += [
                        sent.seq
                        for sent in await asyncio.gather(*(one.send(peer, f"{one.user} {n + m}") for m in range(5)))
                    ]
                    await asyncio.sleep(rng.uniform(0.0, 0.01))
                return seqs

            _, of_ann, of_bob, *seen = await asyncio.gather(
                cuts(), talk(ann, "bob"), talk(bob, "ann"), take(ann, 2 * SENDS), take(bob, 2 * SENDS)
            )
            for got in seen:
                assert [e.seq for e in got] == list(range(1, 2 * SENDS + 1))
                for user in ("ann", "bob"):
                    bodies = [e.body for e in got if e.body is not None and e.body.startswith(user)]
                    assert bodies == [f"{user} {n}" for n in range(SENDS)]
            assert sorted(of_ann + of_bob) == list(range(1, 2 * SENDS + 1))
            assert of_ann == sorted(of_ann)
    assert proxy.connections > CUTS // 2 + 2, "the line was hardly ever cut: this test shows nothing"


@bounded
async def test_more_than_the_server_resends_is_paged_while_new_ones_come(make_server: MakeServer) -> None:
    server = await make_server(rate_messages=10_000, resync_entries_max=20)
    async with make(server, "bob") as bob:
        await bob.send("ann", "0")
        async with make(server, "ann") as ann:
            await ann.send("bob", "1")
            state = ann.state()
        await asyncio.gather(*(bob.send("ann", f"{n}") for n in range(2, 302)))
        async with make(server, "ann", state=state) as ann:
            more = asyncio.gather(*(bob.send("ann", f"{n}") for n in range(302, 352)))
            got = await take(ann, 351)
            await more
            assert [e.body for e in got] == [f"{n}" for n in range(1, 352)]


@bounded
async def test_a_drained_server_is_left_and_its_successor_found(make_server: MakeServer) -> None:
    server = await make_server()
    async with make(server, "ann") as ann:
        await ann.send("bob", "before")
        assert await take(ann, 1)
        draining = asyncio.create_task(server.node.drain())
        while not isinstance(event := await anext(ann.events()), Notice):
            pass
        assert event.kind == "drain"
        sending = asyncio.create_task(ann.send("bob", "after"))
        await draining
        await server.node.stop()
        url = server.node.settings.database_url
        await make_server(port=server.port, database_url=url.get_secret_value() if url else None)
        assert (await sending).seq == 2
        assert [e.body for e in await take(ann, 1)] == ["after"]


@bounded
async def test_a_second_client_of_the_device_replaces_the_first(server: Server) -> None:
    async with make(server, "ann") as old, make(server, "ann") as new:
        with pytest.raises(Stopped) as e:
            await take(old, 1)
        assert e.value.reason == "replaced"
        assert new.connected


@bounded
async def test_tokens_are_judged_by_the_server(server: Server) -> None:
    with pytest.raises(Stopped, match="unauthorized"):
        await Client(server.url, token="nonsense", device="d").open()
    asked: list[bool] = []

    async def token(renew: bool) -> str:
        asked.append(renew)
        return server.token("ann") if renew else "nonsense"

    async with Client(server.url, token=token, device="d", rng=random.Random(1)) as client:
        assert client.user == "ann"
    assert asked[:2] == [False, True]


@bounded
async def test_every_request_of_the_client_is_one_the_server_takes(server: Server) -> None:
    async with make(server, "ann") as ann, make(server, "bob") as bob:
        await ann.send("bob", "hi")
        await bob.send("ann", "hello")
        assert len(await take(bob, 2)) == 2
        await bob.ack("ann", 1)
        assert len((await ann.conversations()).items) == 1
        assert (await ann.conversations(limit=1)).items[0].peer == "bob"
        assert (await ann.history("bob", after=1, limit=10)).entries[0].body == "hello"
        await ann.set_away(True)
        await ann.set_away(False)
        await ann.typing("bob")
        await ann.watch([])
        assert ann.limits.body_bytes == 2048
        with pytest.raises(RequestError, match="no_conversation"):
            await ann.history("stranger")
        with pytest.raises(RequestError, match="bad_text"):
            await ann.send("bob", "\x00")


@bounded
async def test_notes_to_oneself_come_once(server: Server) -> None:
    async with make(server, "ann", "a") as one, make(server, "ann", "b") as two:
        await one.send("ann", "note")
        await two.send("ann", "another")
        for client in (one, two):
            assert [(e.seq, e.peer, e.own) for e in await take(client, 2)] == [(1, "ann", True), (2, "ann", True)]


@bounded
async def test_the_connection_by_hand(server: Server) -> None:
    async with await Connection.open(server.url, server.token("ann"), device="d", watch=["bob"]) as connection:
        assert connection.welcome["presence"] == [{"user": "bob", "state": "hidden", "v": 0}]
        connection.send_text("{")
        assert (await connection.next("err"))["code"] == "bad_frame"
        connection.send_text('{"t":"nonsense","id":50}')
        assert (await connection.next("err"))["code"] == "unknown_type"
        connection.last_id = 50
        assert (await connection.request("ping"))["t"] == "pong"
        async with await Connection.open(server.url, server.token("ann"), device="d"):
            assert await connection.wait_closed() == 4004
        with pytest.raises(ConnectionLost):
            await connection.request("ping")


@bounded
async def test_tail_shows_what_comes(server: Server) -> None:
    out = io.StringIO()
    running = asyncio.create_task(tail(server.url, server.token("ann"), out=out, err=out))
    async with make(server, "bob") as bob:
        await until(lambda: server.node.registry.users.get(UserId("ann")))

        async def shown() -> bool:
            await bob.send("ann", "hi \u202e")
            return "hi" in out.getvalue()

        await until(shown, pause_s=0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert r"bob > hi \u202e" in out.getvalue()
