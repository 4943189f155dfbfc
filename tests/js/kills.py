"""kill -9 of the server, again and again, under a page that sends: whichever page it is.

said = await sends_over_kills(page, chatd, rng)      what the page said, in order
problems(said, conninfo)                             none is right
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Final, Protocol

from tests.faults.crowd import read_log
from tests.fix_process import Process

KILLS: Final = 20
SAID_A_KILL: Final = 6
PAUSE_S_MAX: Final = 0.1


class SendingPage(Protocol):
    """A page in a browser on which somebody writes to one person."""

    async def say(self, text: str) -> None:
        """The user sends it, connected or not."""

    async def wakes(self) -> None:
        """The device says that the network is back: the page tries at once, whatever it waits for."""

    async def is_online(self) -> None:
        """Wait until the page says that it is connected."""

    async def is_sent(self) -> None:
        """Wait until nothing waits any more."""


async def sends_over_kills(page: SendingPage, chatd: Process, rng: random.Random, times: int = KILLS) -> list[str]:
    said: list[str] = []

    async def talk(count: int) -> None:
        for _ in range(count):
            said.append(f"message {len(said)}")
            await page.say(said[-1])
            await asyncio.sleep(rng.uniform(0, PAUSE_S_MAX))

    for _ in range(times):
        await page.is_online()
        talking = asyncio.create_task(talk(SAID_A_KILL))
        await asyncio.sleep(rng.uniform(0, PAUSE_S_MAX * SAID_A_KILL))
        chatd.kill()
        await chatd.start()
        await talking
        await page.wakes()
    await page.is_online()
    await page.is_sent()
    return said


def problems(said: list[str], conninfo: str) -> list[str]:
    """Lost, twice, or out of order in the log."""
    bodies = [entry.body for entries in read_log(conninfo)[0].values() for entry in entries]
    found = [f"lost: {text}" for text in said if text not in bodies]
    found += [f"{count} times: {text}" for text, count in Counter(bodies).items() if count > 1]
    return found or ([] if bodies == said else ["out of order"])
