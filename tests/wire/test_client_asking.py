"""Iterators over what a server gives in pages."""

from __future__ import annotations

import pytest

from tests.fix_fake_chatd import FakeChatd, make_client


async def test_all_of_a_history_in_either_direction() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.say("bob", "me", *(f"{n}" for n in range(1, 251)))
        assert [e.seq async for e in client.iter_history("bob")] == [*range(250, 0, -1)]
        assert [e.seq async for e in client.iter_history("bob", before=4)] == [3, 2, 1]
        assert [e.seq async for e in client.iter_history("bob", after=0)] == [*range(1, 251)]
        assert [e.seq async for e in client.iter_history("bob", after=248)] == [249, 250]
        assert [e.seq async for e in client.iter_history("bob", after=250)] == []
        with pytest.raises(ValueError, match="one way"):
            await anext(client.iter_history("bob", before=1, after=1))


async def test_all_conversations_each_once() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        for n in range(130):
            server.say(f"u{n}", "me", "hi")
        got: list[str] = []
        async for item in client.iter_conversations():
            got.append(item.peer)
            if len(got) == 50:
                server.say("u0", "me", "moves up, and pushes the others down")
        assert len(got) == len(set(got))
        assert set(got) >= {f"u{n}" for n in range(1, 130)}
