"""Tabs of a real Chromium, with its Web Locks and its BroadcastChannel, are one device, whatever becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from tests.client import Peer
from tests.faults import checker
from tests.faults.checker import Finding
from tests.faults.crowd import read_log
from tests.fix_sdk import OpenChromium
from tests.fix_server import MakeServer, Server
from tests.js.crowd import settled
from tests.js.driven_tabs import ORIGIN, Profile, Profiles, Tab
from tests.js.judge import judge_shown, judge_told
from tests.js.test_gates import needs_node
from tests.until import until

pytestmark = [pytest.mark.slow, needs_node]

TABS: Final = 3
SAID: Final = 5
BURST: Final = {"rate_messages": 10_000, "frames_per_s": 100_000, "frames_burst": 100_000}


class Household:
    """Alice has tabs, bob a plain connection; what both said is judged in the end."""

    def __init__(self, server: Server, conninfo: str, profile: Profile, bob: Peer) -> None:
        self.server, self.conninfo, self.profile, self.bob = server, conninfo, profile, bob

    @property
    def sessions(self) -> int:
        return len(self.server.node.registry.users["alice"].sessions)  # type: ignore[index]

    async def opens(self, tabs: int) -> None:
        await asyncio.gather(*(self.profile.open() for _ in range(tabs)))
        await self.is_online()

    async def is_online(self) -> None:
        await until(
            lambda: len(self.profile.leaders) == 1 and all(tab.line == "online" for tab in self.profile.open_tabs),
            changed=self.profile.changed,
        )

    async def both_talk(self, tabs: list[Tab]) -> None:
        for n in range(SAID):
            for tab in tabs:
                await tab.ask("message", "bob", f"{tab.history.device} says {n}")
            await self.bob.say("alice", f"bob says {n}")

    async def verdict(self) -> list[Finding]:
        await until(lambda: not any(tab.unanswered for tab in self.profile.open_tabs), changed=self.profile.changed)
        findings = []
        for tab in self.profile.open_tabs:

            async def view(tab: Tab = tab) -> list[Finding]:
                log, who = read_log(self.conninfo)  # anew: a tab may yet tell of a message that it has sent
                shown = judge_shown(tab.history, "bob", await tab.ask("shown", "bob"), log, who)
                return shown or judge_told([tab], [tab], log, who)

            findings += await settled(view)
        log, who = read_log(self.conninfo)
        return findings + judge_told(self.profile.tabs, [], log, who)


@pytest_asyncio.fixture
async def household(
    make_server: MakeServer, make_db: Callable[[], str], driven_build: Path, open_chromium: OpenChromium
) -> AsyncIterator[Household]:
    conninfo = make_db()
    server = await make_server(database_url=conninfo, origins=[ORIGIN], **BURST)
    async with open_chromium() as browser:
        profiles = Profiles(browser, driven_build)
        profile = await profiles.profile("alice", server.url, server.token("alice"))
        yield Household(server, conninfo, profile, await server.connect("bob"))
        await profiles.end()


@pytest.mark.parametrize("how", ["crash", "close", "freeze"])
async def test_another_tab_leads_where_the_leading_one_is_no_more(household: Household, how: str) -> None:
    """Nothing is lost or doubled, although all talk on."""
    profile = household.profile
    await household.opens(TABS)
    await household.both_talk(profile.open_tabs)
    (leader,) = profile.leaders
    others = [tab for tab in profile.open_tabs if tab is not leader]
    await leader.ask("message", "bob", "the last words of the leading tab")
    talk = asyncio.create_task(household.both_talk(others))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await getattr(leader, how)()
    await until(lambda: any(tab.role == "leader" for tab in others), changed=profile.changed)
    led_s = loop.time() - began
    await until(lambda: all(tab.line == "online" for tab in others), changed=profile.changed)
    print(
        f"{how}: another leads after {1000 * led_s:.0f} ms, and is online after {1000 * (loop.time() - began):.0f} ms"
    )
    await talk
    await household.both_talk(others)
    if how == "freeze":
        await leader.thaw()
    await household.is_online()
    findings = await household.verdict()
    assert not findings, (checker.counts(findings), findings[:10])
    assert household.sessions == 1


async def test_eleven_tabs_are_one_device(household: Household) -> None:
    assert household.server.node.settings.devices_max < 11
    await household.opens(11)
    assert household.sessions == 1
    await household.both_talk(household.profile.open_tabs)
    findings = await household.verdict()
    assert not findings, (checker.counts(findings), findings[:10])
    assert household.sessions == 1
    devices = {entry.sender for entries in read_log(household.conninfo)[0].values() for entry in entries}
    assert devices == {"alice", "bob"}


async def test_all_tabs_die_and_what_was_said_is_sent_by_the_next_one(household: Household) -> None:
    """As far as it was stored: by the time that a tab shows it, that is 50 ms."""
    profile = household.profile
    await household.opens(2)
    await household.both_talk(profile.open_tabs)
    await until(lambda: not any(tab.unanswered for tab in profile.open_tabs), changed=profile.changed)
    for tab in profile.open_tabs:
        await tab.crash()
    tab = await profile.open()
    await household.is_online()
    await tab.ask("message", "bob", "after all of them")
    findings = await household.verdict()
    assert not findings, (checker.counts(findings), findings[:10])
