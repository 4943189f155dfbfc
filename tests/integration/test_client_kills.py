"""A program of handlers with a store, killed again and again: each question is answered once."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest

from chatd.core.session import Session
from chatd.ids import DeviceId, UserId
from tests.fix_server import MakeServer
from tests.integration.test_client import bounded, make
from tests.until import until

KILLS = 6
QUESTIONS = 40

PROGRAM = """
import asyncio, sys
from chatd.client import Client, FileStore

url, token, path = sys.argv[1:]
client = Client(url, token=token, device="bot", store=FileStore(path))

@client.on_message
async def answer(entry):
    await entry.reply("re " + entry.body)

client.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@bounded
async def test_a_bot_that_is_killed_answers_each_question_once(
    make_server: MakeServer, seed: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    server = await make_server(rate_messages=10_000)
    people = [f"u{n}" for n in range(4)]

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, server.url, server.token("bot"), str(tmp_path / "state"),
            env=dict(os.environ),
        )  # fmt: skip

    running = await start()
    await until((tmp_path / "state").exists)  # from here on nothing is missed
    clients = [make(server, name) for name in people]
    for client in clients:
        await client.open()

    async def ask() -> None:
        for n in range(QUESTIONS):
            await rng.choice(clients).send("bot", f"{n}")
            await asyncio.sleep(rng.random() * 0.1)

    def session() -> Session | None:
        bot = server.node.registry.users.get(UserId("bot"))
        return None if bot is None else bot.sessions.get(DeviceId("bot"))

    asking = asyncio.create_task(ask())
    for _ in range(KILLS):
        await asyncio.sleep(0.2 + rng.random() * 0.5)
        running.kill()
        await running.wait()
        killed = session()
        running = await start()
    await asking

    async def answers() -> list[str | None]:
        return [e.body for c in clients async for e in c.iter_history("bot", after=0) if not e.own]

    async def all_answered() -> bool:
        return len(await answers()) >= QUESTIONS

    await until(all_answered, pause_s=0.2)
    # A process that has connected has its handlers of signals
    await until(lambda: (one := session()) is not None and one is not killed and one.live)
    running.terminate()
    assert await running.wait() == 0, "it ends in good order"
    assert sorted(map(str, await answers())) == sorted(f"re {n}" for n in range(QUESTIONS))
    for client in clients:
        await client.close()
