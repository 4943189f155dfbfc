"""kill -9 of the server 20 times in a row under a tab that sends: each message arrives once, in order."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.checker import Finding
from tests.faults.crowd import read_log, seed
from tests.fix_process import MakeProcess, OwnPostgres
from tests.fix_sdk import OpenChromium
from tests.js.crowd import settled
from tests.js.driven_tabs import ORIGIN, Profiles, Tab
from tests.js.judge import judge_shown, judge_told
from tests.js.kills import problems, sends_over_kills
from tests.js.test_gates import needs_node
from tests.until import until

pytestmark = [pytest.mark.slow, needs_node]


class Page:
    """A tab of the tests, whose user writes to bob."""

    def __init__(self, tab: Tab) -> None:
        self._tab = tab

    async def say(self, text: str) -> None:
        await self._tab.ask("message", "bob", text)

    async def wakes(self) -> None:
        await self._tab.page.evaluate("dispatchEvent(new Event('online'))")

    async def is_online(self) -> None:
        await until(lambda: self._tab.line == "online", within_s=60, changed=self._tab.changed)

    async def is_sent(self) -> None:
        await until(lambda: not self._tab.unanswered, within_s=60, changed=self._tab.changed)


async def test_twenty_kills_under_a_tab_that_sends(
    own_postgres: OwnPostgres, make_process: MakeProcess, driven_build: Path, open_chromium: OpenChromium
) -> None:
    rng = random.Random(seed())
    chatd = await make_process(database_url=own_postgres.conninfo, origins=ORIGIN, rate_messages=10_000)
    async with open_chromium() as browser:
        profiles = Profiles(browser, driven_build)
        profile = await profiles.profile("alice", chatd.url, chatd.token("alice"))
        tab = await profile.open()
        said = await sends_over_kills(Page(tab), chatd, rng)
        assert problems(said, own_postgres.conninfo) == []
        log, who = read_log(own_postgres.conninfo)

        async def view() -> list[Finding]:
            return judge_shown(tab.history, "bob", await tab.ask("shown", "bob"), log, who)

        assert await settled(view) == []
        assert judge_told([tab], [tab], log, who) == []
        print(f"{len(said)} messages over {chatd.starts - 1} kills, {tab.onlines} times online")
        await profiles.end()
