"""Fifty clients of the SDK in Node and ten tabs in Chromium talk over a real chatd while lines are cut, tabs die and
the server is killed: nothing is lost, doubled or out of order.

CHATD_FAULT_SEED replays the schedule (not the machine's timing); CROWD_SECONDS says how long they talk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path
from typing import Final

import pytest

from tests.faults import checker
from tests.faults.crowd import seed
from tests.fix_process import MakeProcess, OwnPostgres
from tests.fix_sdk import OpenChromium
from tests.js.crowd import Crowd, Weather
from tests.js.driven import NodeClients
from tests.js.driven_tabs import ORIGIN, Profiles
from tests.js.test_gates import needs_node
from tests.proxy import Proxy
from tests.until import until

pytestmark = [pytest.mark.slow, needs_node]

SECONDS_SHORT: Final = 6.0
NODE_USERS: Final = 25
NODE_DEVICES: Final = 2
TABS: Final = {"t0": 4, "t1": 3, "t2": 3}
LINES_OF_NODE: Final = 3
LIMITS: Final = {
    "rate_messages": 10_000,
    "frames_per_s": 100_000,
    "frames_burst": 100_000,
    "new_conversations_per_hour": 10_000,
    "origins": ORIGIN,
}


def who_talks_to_whom(users: list[str], rng: random.Random) -> dict[str, list[str]]:
    """Each tab's user with the other ones and three of Node's, and everybody of Node with the next."""
    peers: dict[str, set[str]] = {user: set() for user in [*users, *TABS]}
    pairs = list(zip(users, users[1:] + users[:1], strict=True))
    pairs += [(a, b) for a in TABS for b in TABS if a < b]
    pairs += [(user, other) for user in TABS for other in rng.sample(users, min(3, len(users)))]
    for a, b in pairs:
        peers[a].add(b)
        peers[b].add(a)
    return {user: sorted(theirs - {user}) for user, theirs in peers.items()}


async def test_a_crowd_loses_doubles_and_reorders_nothing(
    own_postgres: OwnPostgres, make_process: MakeProcess, driven_build: Path, open_chromium: OpenChromium
) -> None:
    rng = random.Random(seed())
    for_s = float(os.environ.get("CROWD_SECONDS") or SECONDS_SHORT)
    is_long = for_s > SECONDS_SHORT
    chatd = await make_process(database_url=own_postgres.conninfo, **LIMITS)
    users = [f"n{n}" for n in range(NODE_USERS)]
    async with contextlib.AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(Proxy(chatd.port)) for _ in range(LINES_OF_NODE + len(TABS))]
        urls = [f"ws://127.0.0.1:{line.port}/ws" for line in lines]
        profiles = Profiles(await stack.enter_async_context(open_chromium()), driven_build)
        stack.push_async_callback(profiles.end)
        specs = [
            {"url": urls[(n + d) % LINES_OF_NODE], "token": chatd.token(user), "user": user, "device": f"{user}-{d}"}
            for n, user in enumerate(users) for d in range(NODE_DEVICES)
        ]  # fmt: skip
        node = await stack.enter_async_context(NodeClients(driven_build, specs, profiles.changed))
        opened = [
            await profiles.profile(user, url, chatd.token(user))
            for user, url in zip(TABS, urls[LINES_OF_NODE:], strict=True)
        ]
        crowd = Crowd(node.clients, opened, who_talks_to_whom(users, rng), rng, 2.0 if is_long else 0.7)
        await asyncio.gather(*(client.ask("start") for client in node.clients))
        for profile in opened:
            await asyncio.gather(*(profile.open() for _ in range(TABS[profile.user])))
        await until(lambda: all(one.line == "online" for one in crowd.living), changed=profiles.changed)
        crowd.start()
        weather = Weather(crowd, chatd, lines, rng, 2.0 if is_long else 0.25)
        await weather.rages(for_s)
        await crowd.settle(own_postgres.conninfo)
        findings = await crowd.verdict(own_postgres.conninfo)
        told = sum(len(one.history.events) for one in crowd.clients)
        onlines = sum(one.onlines for one in crowd.clients)
        print(f"{crowd.acked} acked, {told} told, {onlines} times online, {dict(weather.done)}")
    assert not findings, (checker.counts(findings), findings[:10])
    assert crowd.acked > 0
