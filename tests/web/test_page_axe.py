"""axe-core finds nothing to object to, in each state of the page, light and dark, wide and narrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import pytest

pytest.importorskip("playwright.async_api", reason="playwright is not installed: `make setup` installs it")

from playwright.async_api import expect

from tests.browser import DESK, PHONE, Browsing, Size, Tab

AXE: Final = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"

SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not AXE.exists(), reason="axe-core is not in node_modules: `make setup` installs it"),
]


async def objections(tab: Tab) -> list[str]:
    """What axe says, one line a node, light and dark."""
    if not await tab.page.evaluate("'axe' in window"):
        await tab.page.evaluate(AXE.read_text())
    lines = []
    for scheme in SCHEMES:
        await tab.page.emulate_media(color_scheme=scheme)
        await tab.settled()
        found: dict[str, Any] = await tab.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        lines += [
            f"{scheme}: {one['id']}: {node['target']} {node['failureSummary']}"
            for one in found["violations"]
            for node in one["nodes"]
        ]
    return lines


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
async def test_no_state_of_the_page_has_a_violation(browsing: Browsing, size: Size) -> None:
    alice, bob = browsing.user("alice"), browsing.user("bob")
    peer, own = await browsing.server.connect(bob), await browsing.server.connect(alice, "own")
    tab = await browsing.blank(size=size)
    await tab.page.goto(browsing.address)
    await expect(tab.page.get_by_label("Your name")).to_be_visible()
    found = {"sign-in": await objections(tab)}
    await tab.page.get_by_role("button", name="Start chatting").click()
    await expect(tab.page.locator("#who-fault")).not_to_be_empty()
    found["sign-in with a fault"] = await objections(tab)
    await tab.sign_in(alice)
    found["no conversations"] = await objections(tab)
    await own.say(bob, "mine, which is read")
    for body in ("theirs, with a link: https://chat.example.org/", "👍", "line\n" * 30, "מה שלומך"):
        await peer.say(alice, body)
    sent = await own.say(bob, "to be deleted")
    await own.request("delete", to=bob, cid="00000000-0000-4000-8000-00000000000a", ref=sent["seq"])
    await peer.request("read", to=alice, seq=1)
    await expect(tab.page.locator(".conversation .badge")).to_have_text("4")
    found["a list with unread"] = await objections(tab)
    await tab.page.locator("#search").fill("somebody new")
    await expect(tab.page.locator(".start")).to_be_visible()
    found["a search"] = await objections(tab)
    await tab.page.locator("#search").fill("")
    await tab.open(bob)
    await expect(tab.line).to_be_attached()
    found["a log"] = await objections(tab)
    await tab.writing.fill("mine, to be asked about")
    await tab.page.keyboard.press("Enter")
    await expect(tab.message("mine, to be asked about").locator(".tick")).to_have_attribute("aria-label", "Sent")
    await tab.hit("mine, to be asked about", "Edit")
    found["an edit"] = await objections(tab)
    await tab.page.keyboard.press("Escape")
    await tab.hit("mine, to be asked about", "Delete")
    await expect(tab.dialog).to_be_visible()
    found["a question"] = await objections(tab)
    await tab.dialog.get_by_role("button", name="Cancel").click()
    browsing.cut()
    await tab.writing.fill("written offline")
    await tab.page.keyboard.press("Enter")
    await expect(tab.page.locator(".banner", has_text="No connection")).to_be_visible()
    found["offline"] = await objections(tab)
    assert {state: said for state, said in found.items() if said} == {}
