"""What the page shows where there is no server, and what a visit costs on the wire, in Chromium."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright.async_api", reason="playwright is not installed: `make setup` installs it")

from playwright.async_api import Response, expect

from tests.browser import Browsing, Tab
from tests.client import Peer

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTROLLED = "navigator.serviceWorker.ready.then(() => true)"

# Whether a text is in IndexedDB.
IS_STORED = """async (text) => {
  const done = (asked) => new Promise((resolve) => { asked.onsuccess = () => resolve(asked.result); });
  for (const { name } of await indexedDB.databases()) {
    const db = await done(indexedDB.open(name));
    for (const store of db.objectStoreNames) {
      const all = await done(db.transaction(store).objectStore(store).getAll());
      if (JSON.stringify(all).includes(text)) return true;
    }
    db.close();
  }
  return false;
}"""


async def talking(browsing: Browsing) -> tuple[Peer, Tab]:
    """bob, who has written to alice; her tab, which shows it and has the service worker."""
    alice, bob = browsing.user("alice"), browsing.user("bob")
    peer = await browsing.server.connect(bob)
    await peer.say(alice, "from bob")
    tab = await browsing.tab(alice)
    await tab.open(bob)
    await expect(tab.message("from bob")).to_be_visible()
    assert await tab.page.evaluate(CONTROLLED)
    return peer, tab


async def test_a_reload_without_a_server_shows_the_page_and_what_was_there_and_sends_what_is_written_later(
    browsing: Browsing,
) -> None:
    peer, tab = await talking(browsing)
    await tab.offline()
    await tab.page.reload()
    await expect(tab.message("from bob")).to_be_visible()
    await tab.writing.fill("written offline")
    await tab.page.keyboard.press("Enter")
    await expect(tab.message("written offline").locator(".tick")).to_have_attribute("aria-label", "Sending")
    await tab.page.wait_for_function(IS_STORED, arg="written offline")
    await tab.page.reload()
    await expect(tab.message("written offline")).to_be_visible()
    await tab.online()
    await expect(tab.message("written offline").locator(".tick")).to_have_attribute("aria-label", "Sent")
    assert (await peer.push("entry"))["body"] == "written offline"


# Another write is under way until the page ends, as one is while messages come: what is written meanwhile waits for it.
RELOAD_AFTER_ENTER = """() => new Promise((begun) => {
  addEventListener('keydown', (event) => { if (event.key === 'Enter') location.reload(); });
  const asked = indexedDB.open('chatd');
  asked.onsuccess = () => {
    const table = asked.result.transaction('records', 'readwrite').objectStore('records');
    const again = () => { table.get(['', '']).onsuccess = again; begun(); };
    again();
  };
})"""


@pytest.mark.parametrize("is_online", [True, False], ids=["online", "without a server"])
async def test_a_reload_in_the_moment_of_enter_loses_nothing_and_doubles_nothing(
    browsing: Browsing, is_online: bool
) -> None:
    peer, tab = await talking(browsing)
    if not is_online:
        await tab.offline()
    said = [f"in the last moment {n}" for n in range(3)]
    for text in said:
        await tab.writing.fill(text)
        await tab.page.evaluate(RELOAD_AFTER_ENTER)
        async with tab.page.expect_navigation():
            await tab.page.keyboard.press("Enter")
        await expect(tab.message(text)).to_be_visible()
    if not is_online:
        await tab.online()
    for text in said:
        await expect(tab.message(text).locator(".tick")).to_have_attribute("aria-label", "Sent")
    page = await peer.request("history", to=browsing.user("alice"))
    assert [entry["body"] for entry in page["entries"]] == ["from bob", *said]
    assert await tab.page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('chatd ')).length") == 0


async def test_a_visit_gets_few_compressed_files_and_the_next_one_gets_no_script_again(browsing: Browsing) -> None:
    tab = await browsing.blank()
    answers: list[Response] = []
    tab.page.on("response", lambda answer: answers.append(answer))
    await tab.sign_in(browsing.user("alice"))
    assert await tab.page.evaluate(CONTROLLED)
    script = next(one for one in answers if one.url.endswith(".js") and "/assets/" in one.url)
    headers = await script.all_headers()
    assert headers["cache-control"] == "public, max-age=31536000, immutable"
    assert headers["content-encoding"] in {"br", "gzip"}
    by_page = [one for one in answers if not one.from_service_worker and one.request.frame is not None]
    assert len({one.url.partition("?")[0] for one in by_page}) <= 8
    answers.clear()
    await tab.page.reload()
    await expect(tab.page.locator(".side .state", has_text="online")).to_be_visible()
    again = [one for one in answers if "/assets/" in one.url]
    assert again
    assert all(one.from_service_worker for one in again)


async def test_a_page_whose_second_script_does_not_come_says_so(browsing: Browsing) -> None:
    tab = await browsing.blank()
    await tab.page.route("**/assets/room-*.js", lambda route: route.abort())
    await tab.page.goto(browsing.address)
    await tab.page.locator("#who").fill(browsing.user("alice"))
    await tab.page.keyboard.press("Enter")
    await expect(tab.page.get_by_role("alert")).to_contain_text("could not be loaded")
