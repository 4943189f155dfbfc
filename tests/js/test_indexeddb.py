"""The store of the SDK in a real Chromium's IndexedDB: what outlives a reload, and what is no store any more.

Whatever becomes of the store, the client says so, goes on in memory, and loses nothing.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from tests.client import Peer
from tests.faults.checker import Finding
from tests.faults.crowd import read_log
from tests.fix_sdk import OpenChromium
from tests.fix_server import MakeServer, Server
from tests.js.crowd import settled
from tests.js.driven_tabs import ORIGIN, Profile, Profiles, Tab
from tests.js.judge import judge_shown, judge_told
from tests.js.test_gates import needs_node
from tests.proxy import Proxy
from tests.until import until

pytestmark = [pytest.mark.slow, needs_node]

LARGE_BYTES: Final = 1_800
LARGE_MAX: Final = 200
STORED: Final = """(wanted) => new Promise((resolve, reject) => {
  const asked = indexedDB.open('chatd');
  asked.onerror = () => reject(asked.error);
  asked.onsuccess = () => {
    const all = asked.result.transaction('records').objectStore('records').getAll();
    all.onsuccess = () => { asked.result.close(); resolve(JSON.stringify(all.result).includes(wanted)); };
  };
})"""
DELETED: Final = """() => new Promise((resolve, reject) => {
  const asked = indexedDB.deleteDatabase('chatd');
  asked.onsuccess = () => resolve();
  asked.onerror = () => reject(asked.error);
})"""
OF_A_LATER_VERSION: Final = """() => new Promise((resolve, reject) => {
  const asked = indexedDB.open('chatd', 99);
  asked.onsuccess = () => { asked.result.close(); resolve(); };
  asked.onerror = () => reject(asked.error);
})"""
OF_ANOTHER_USER: Final = """() => new Promise((resolve, reject) => {
  const asked = indexedDB.open('chatd');
  asked.onsuccess = () => {
    const under = asked.result.transaction('records', 'readwrite');
    const records = under.objectStore('records');
    records.getAllKeys().onsuccess = ({ target }) => {
      for (const key of target.result) if (key[1] === 'meta')
        records.get(key).onsuccess = ({ target: had }) => records.put({ ...had.result, user: 'mallory' }, key);
    };
    under.oncomplete = () => { asked.result.close(); resolve(); };
    under.onabort = () => reject(under.error);
  };
})"""


class Stored:
    """Alice in one tab, whose line can be taken away; bob on a plain connection."""

    def __init__(self, server: Server, conninfo: str, proxy: Proxy, profile: Profile, bob: Peer) -> None:
        self.server, self.conninfo, self.proxy, self.profile, self.bob = server, conninfo, proxy, profile, bob

    async def opens(self) -> Tab:
        tab = await self.profile.open()
        await self.is_online(tab)
        return tab

    async def is_online(self, tab: Tab) -> None:
        await until(lambda: tab.line == "online", changed=self.profile.changed)

    async def they_talk(self, tab: Tab, what: str) -> None:
        await tab.ask("message", "bob", f"alice {what}")
        await until(lambda: not tab.unanswered, changed=self.profile.changed)
        await self.bob.say("alice", f"bob {what}")
        await self.shows(tab, f"bob {what}")

    async def shows(self, tab: Tab, text: str) -> None:
        async def is_shown() -> bool:
            return text in [body for *_, body in await tab.ask("held", "bob")]

        await until(is_shown, f"{text} is shown")

    async def is_stored(self, tab: Tab, text: str) -> None:
        async def is_there() -> bool:
            return bool(await tab.page.evaluate(STORED, text))

        await until(is_there, f"{text} is stored")

    async def has_lost_its_store(self, tab: Tab, reason: str) -> None:
        """It said why, once, and goes on: what is said arrives once, what comes is shown."""
        await until(lambda: tab.stores_lost, changed=self.profile.changed)
        assert tab.stores_lost == [reason]
        await self.they_talk(tab, f"after {reason}")
        assert tab.stores_lost == [reason]
        await self.is_right(tab)

    async def is_right(self, tab: Tab) -> None:
        log, who = read_log(self.conninfo)

        async def view() -> list[Finding]:
            shown = judge_shown(tab.history, "bob", await tab.ask("shown", "bob"), log, who)
            return shown + judge_told([tab], [tab], log, who)

        assert await settled(view) == []

    @contextlib.asynccontextmanager
    async def without_a_line(self) -> AsyncIterator[None]:
        self.proxy.upstream = 0
        self.proxy.drop()
        yield
        self.proxy.upstream = self.server.port


@pytest_asyncio.fixture
async def stored(
    make_server: MakeServer, make_db: Callable[[], str], driven_build: Path, open_chromium: OpenChromium
) -> AsyncIterator[Stored]:
    conninfo = make_db()
    server = await make_server(database_url=conninfo, origins=[ORIGIN], rate_messages=1_000)
    async with Proxy(server.port) as proxy, open_chromium() as browser:
        profiles = Profiles(browser, driven_build)
        profile = await profiles.profile("alice", f"ws://127.0.0.1:{proxy.port}/ws", server.token("alice"))
        yield Stored(server, conninfo, proxy, profile, await server.connect("bob"))
        await profiles.end()


async def test_a_reload_without_a_line_shows_the_messages_and_sends_what_waits(stored: Stored) -> None:
    tab = await stored.opens()
    await stored.they_talk(tab, "before")
    before = await tab.ask("held", "bob")
    async with stored.without_a_line():
        await until(lambda: tab.line == "offline", changed=stored.profile.changed)
        await tab.ask("message", "bob", "said into a dead line")
        await stored.is_stored(tab, "said into a dead line")
        again = await stored.profile.reload(tab)
        await stored.shows(again, "said into a dead line")
        assert (await again.ask("held", "bob"))[: len(before)] == before
        assert again.line != "online"
        await stored.bob.say("alice", "said meanwhile")
    await stored.is_online(again)
    await stored.shows(again, "said meanwhile")
    await stored.is_right(again)
    bodies = [entry.body for entries in read_log(stored.conninfo)[0].values() for entry in entries]
    assert sorted(filter(None, bodies)) == sorted(
        ["alice before", "bob before", "said meanwhile", "said into a dead line"]
    )
    assert again.stores_lost == []


async def test_a_database_that_is_deleted_while_it_is_open(stored: Stored) -> None:
    tab = await stored.opens()
    await stored.they_talk(tab, "before")
    await tab.page.evaluate(DELETED)
    await stored.has_lost_its_store(tab, "deleted")
    again = await stored.profile.reload(tab)
    await stored.is_online(again)
    await stored.they_talk(again, "after the reload")
    await stored.is_right(again)
    assert again.stores_lost == []


async def test_a_database_of_a_later_version(stored: Stored) -> None:
    """A later release of the application in another tab, while this one is open, and after a reload."""
    tab = await stored.opens()
    await stored.they_talk(tab, "before")
    await tab.page.evaluate(OF_A_LATER_VERSION)
    await stored.has_lost_its_store(tab, "later_version")
    again = await stored.profile.reload(tab)
    await stored.is_online(again)
    await stored.has_lost_its_store(again, "later_version")


async def test_a_store_of_another_user_is_not_shown_and_not_written(stored: Stored) -> None:
    tab = await stored.opens()
    await stored.they_talk(tab, "before")
    await stored.is_stored(tab, "bob before")
    await tab.page.evaluate(OF_ANOTHER_USER)
    async with stored.without_a_line():
        again = await stored.profile.reload(tab)
        await until(lambda: again.stores_lost, changed=stored.profile.changed)
        assert await again.ask("held", "bob") == []
    await stored.is_online(again)
    await stored.has_lost_its_store(again, "another_user")
    assert not await again.page.evaluate(STORED, "after another_user")


async def test_a_token_of_another_user_gets_nothing_of_the_store(stored: Stored) -> None:
    tab = await stored.opens()
    await stored.they_talk(tab, "before")
    await stored.is_stored(tab, "bob before")
    await tab.close()
    stored.profile.token = stored.server.token("carol")
    again = await stored.profile.open()
    await until(lambda: again.stores_lost and again.line == "online", changed=stored.profile.changed)
    assert again.stores_lost == ["another_user"]
    assert await again.ask("held", "bob") == []


async def test_a_page_that_may_store_nothing_is_a_tab_of_its_own(stored: Stored) -> None:
    """In a sandbox: no locks, no database. The server lets no page of an unknown origin in."""
    tab = await stored.profile.open_sandboxed()
    await until(lambda: tab.role == "leader" and tab.line == "offline", changed=stored.profile.changed)
    assert tab.stores_lost == ["denied"]


@pytest.mark.parametrize("quota_bytes", [1, 30_000])
async def test_no_room_is_left(stored: Stored, quota_bytes: int) -> None:
    """From the start, or once some messages have filled it."""
    blank = await stored.profile.context.new_page()  # a database that is open goes on with the room that it had
    cdp = await stored.profile.context.new_cdp_session(blank)
    await cdp.send("Storage.overrideQuotaForOrigin", {"origin": ORIGIN, "quotaSize": quota_bytes})
    tab = await stored.opens()
    rng = random.Random(quota_bytes)
    for _ in range(LARGE_MAX):
        if tab.stores_lost:
            break
        text = rng.randbytes(LARGE_BYTES // 2).hex()
        await stored.bob.say("alice", text)
        await stored.shows(tab, text)
    await stored.has_lost_its_store(tab, "quota")
    again = await stored.profile.reload(tab)
    await stored.is_online(again)
    await stored.they_talk(again, "after the reload")
    await stored.is_right(again)
