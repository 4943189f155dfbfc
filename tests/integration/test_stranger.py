"""docs/protocol.md was enough: a client written from it alone, with nothing but `websockets` and
`json`, against a live server.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import stranger
from tests.fix_server import MakeServer, Server
from tests.stranger import Frame, Stranger
from tests.until import until

WAIT_S = 20.0


@contextlib.asynccontextmanager
async def client(
    server: Server, user: str, device: str = "stranger", after: Stranger | None = None
) -> AsyncIterator[Stranger]:
    """A client that has been welcomed. `after`: it goes on from what that one held."""
    one = Stranger(server.url, lambda _: server.token(user), device, patience=0.01)
    if after is not None:
        one.epoch, one.since, one.heads, one.shown = after.epoch, after.since, after.heads, after.shown
        one.listed, one.known = after.listed, after.known
    task = asyncio.create_task(one.run())
    try:
        async with asyncio.timeout(WAIT_S):
            await one.live.wait()
        yield one
    finally:
        task.cancel()
        await asyncio.wait([task])


async def bodies(one: Stranger, count: int) -> list[str | None]:
    """Of all entries shown, once there are so many."""
    await until(lambda: len(one.shown) >= count, changed=one.news)
    assert len(one.shown) == count
    return [entry.get("body") for entry in one.shown]


async def done(result: asyncio.Future[Frame]) -> Frame:
    async with asyncio.timeout(WAIT_S):
        return await result


def test_it_uses_nothing_but_websockets_and_json() -> None:
    imported = set()
    for node in ast.walk(ast.parse(Path(stranger.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))
    assert imported <= {
        "__future__",
        "asyncio",
        "collections.abc",
        "contextlib",
        "json",
        "random",
        "typing",
        "uuid",
        "websockets.asyncio.client",
        "websockets.exceptions",
    }


async def test_two_strangers_chat(server: Server) -> None:
    async with (
        client(server, "alice") as alice,
        client(server, "bob") as bob,
        client(server, "bob", "tablet") as tablet,
    ):
        assert (await done(alice.send("bob", "hi")))["seq"] == 1
        assert await bodies(bob, 1) == ["hi"]
        await done(bob.send("alice", "hello"))
        await done(alice.edit("bob", 1, "hi!"))
        await done(bob.delete("alice", 2))
        everything = ["hi", "hello", "hi!", None]
        assert [await bodies(one, 4) for one in (alice, bob, tablet)] == [everything] * 3
        (c,) = alice.heads
        assert alice.texts == bob.texts == tablet.texts == {(c, 1): (3, "hi!"), (c, 2): (4, None)}


async def test_a_refusal_is_final_and_blocks_nothing(server: Server) -> None:
    async with client(server, "alice") as alice:
        refused, stored = alice.send("bob", ""), alice.send("bob", "x")
        assert (await done(refused))["code"] == "bad_text"
        assert (await done(stored))["seq"] == 1


async def test_it_gets_what_it_missed_and_nothing_twice(server: Server) -> None:
    async with client(server, "alice") as alice, client(server, "bob") as bob:
        await done(alice.send("bob", "0"))
        await bodies(bob, 1)
        for n in range(1, 5):
            bob.cut()
            await done(alice.send("bob", f"{2 * n - 1}"))
            await done(alice.send("bob", f"{2 * n}"))
            assert await bodies(bob, 2 * n + 1) == [str(m) for m in range(2 * n + 1)]
        assert await bodies(alice, 9) == await bodies(bob, 9)


async def test_a_conversation_that_began_meanwhile_is_fetched_whole(server: Server) -> None:
    async with client(server, "alice") as alice, client(server, "bob") as bob:
        for session in [
            s for user in server.node.registry.users.values() if user.id == "bob" for s in user.sessions.values()
        ]:
            session.sink.close(1012, "restart")
        await done(alice.send("bob", "1"))
        await done(alice.send("bob", "2"))
        assert await bodies(bob, 2) == ["1", "2"]


async def test_too_much_of_it_is_paged_and_live_entries_wait(make_server: MakeServer) -> None:
    server = await make_server(resync_entries_max=3, rate_messages=1000)
    async with client(server, "alice") as alice:
        async with client(server, "bob") as before:
            await done(alice.send("bob", "0"))
            await bodies(before, 1)
        for result in [alice.send("bob", f"{n}") for n in range(1, 251)]:
            await done(result)
        async with client(server, "bob", after=before) as bob:
            assert bob._held, "pages are missing"
            last = alice.send("bob", "251")
            assert await bodies(bob, 252) == [str(n) for n in range(252)]
            assert (await done(last))["seq"] == 252


async def test_a_lost_ok_makes_no_second_message(make_server: MakeServer) -> None:
    server = await make_server(rate_messages=1000)
    async with client(server, "alice") as alice, client(server, "bob") as bob:
        for n in range(10):
            result = alice.send("bob", f"{n}")
            if n % 2:
                await asyncio.sleep(0)  # it is on its way
                await asyncio.sleep(0)
            alice.cut()
            assert (await done(result))["seq"] == n + 1
        assert await bodies(bob, 10) == [str(n) for n in range(10)]


async def test_an_outbox_over_the_rate_drains_in_order(make_server: MakeServer) -> None:
    server = await make_server(rate_messages=5, rate_per_ms=400)
    async with client(server, "alice") as alice, client(server, "bob") as bob:
        results = [alice.send("bob", f"{n}") for n in range(23)]
        assert [(await done(result))["seq"] for result in results] == list(range(1, 24))
        assert await bodies(bob, 23) == [str(n) for n in range(23)]


@pytest.mark.parametrize("seed", range(3))
async def test_cuts_at_any_time_neither_lose_nor_double_nor_swap(make_server: MakeServer, seed: int) -> None:
    server = await make_server(rate_messages=1000)
    rng = random.Random(seed)
    async with client(server, "alice") as alice, client(server, "bob") as bob:
        results = []
        for n in range(60):
            results.append(alice.send("bob", f"a{n}"))
            results.append(bob.send("alice", f"b{n}"))
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            if rng.random() < 0.2:
                rng.choice([alice, bob]).cut()
        seqs = [(await done(result))["seq"] for result in results]
        assert sorted(seqs) == list(range(1, 121))
        async with client(server, "bob", "judge") as judge:
            judge.heads = dict.fromkeys(bob.heads, 0)
            judge.cut()
            log = await bodies(judge, 120)
        assert [body for body in log if str(body).startswith("a")] == [f"a{n}" for n in range(60)]
        assert [body for body in log if str(body).startswith("b")] == [f"b{n}" for n in range(60)]
        assert await bodies(bob, 120) == log == await bodies(alice, 120)


async def test_another_epoch_drops_what_is_held_and_keeps_the_outbox(server: Server) -> None:
    async with client(server, "alice") as alice:
        await done(alice.send("bob", "1"))
        alice.live.clear()
        alice.cut()
        alice.epoch = "of another life"
        waiting = alice.send("bob", "2")
        assert (await done(waiting))["seq"] == 2
        assert alice.epoch == server.node.store.epoch


async def test_a_second_connection_of_the_device_ends_the_first_for_good(server: Server) -> None:
    async with client(server, "alice") as first, client(server, "alice") as second:
        async with asyncio.timeout(WAIT_S):
            while first.ended is None:
                first.news.clear()
                await first.news.wait()
        assert first.ended == 4004
        assert (await done(second.send("bob", "still here")))["seq"] == 1


async def test_a_token_that_ended_is_replaced(make_server: MakeServer) -> None:
    server = await make_server()
    asked = []

    def token(renew: bool) -> str:
        asked.append(renew)
        return server.token("alice") if renew else "x"

    one = Stranger(server.url, token, patience=0.01)
    task = asyncio.create_task(one.run())
    async with asyncio.timeout(WAIT_S):
        await one.live.wait()
    task.cancel()
    await asyncio.wait([task])
    assert asked == [False, True]
