"""The scene of docs/drawings/cut.svg on a real server, over a line that is cut: it ends as the picture does."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from chatd.client import Client, Entry
from tests.fix_server import MakeServer
from tests.proxy import Proxy
from tests.tidy import moving_picture
from tests.tidy.moving_picture import SCENE, Said

END_S_MAX = 30.0  # for what hangs


async def _log(client: Client) -> list[tuple[int, str, str]]:
    """(seq, who, text) of each entry that this end is given, until it has all."""
    entries: list[Entry] = []
    async with asyncio.timeout(END_S_MAX):
        async for entry in client.entries():
            entries.append(entry)
            if len(entries) == len(SCENE):
                break
    return [(one.seq, client.user if one.own else one.peer, str(one.body)) for one in entries]


async def _say(people: dict[str, Client], said: Said, waiting: list[Any]) -> None:
    """What waits is not awaited; what does not is stored before the next."""
    (other,) = people.keys() - {said.by}
    sending = people[said.by].submit(other, said.body)
    if moving_picture.waits(said):
        waiting.append(sending)
    else:
        await sending


async def test_the_scene_ends_as_the_picture_does(make_server: MakeServer) -> None:
    server = await make_server()
    async with Proxy(server.port) as proxy, AsyncExitStack() as stack:
        people = {}
        for user, port in (("alice", proxy.port), ("bob", server.port)):
            client = Client(f"ws://127.0.0.1:{port}/ws", token=server.token(user), device=f"{user}-1")
            people[user] = await stack.enter_async_context(client)
        waiting: list[Any] = []
        for said in (one for one in SCENE if one.at_s < moving_picture.CUT_S):
            await _say(people, said, waiting)
        proxy.swallow()
        proxy.drop()
        for said in (one for one in SCENE if one.at_s >= moving_picture.CUT_S):
            await _say(people, said, waiting)
        assert {one.state for one in waiting} <= {"queued", "sending"}
        proxy.heal()
        drawn = [(one.seq, one.said.by, one.said.body) for one in moving_picture.log()]
        assert await _log(people["alice"]) == drawn
        assert await _log(people["bob"]) == drawn
