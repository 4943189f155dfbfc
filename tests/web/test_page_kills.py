"""kill -9 of the server 20 times in a row under the page, while its user writes: each message arrives
once, in order, and is shown so.
"""

from __future__ import annotations

import random

import pytest
from playwright.async_api import Page, expect

from tests.faults.crowd import seed
from tests.fix_process import MakeProcess, OwnPostgres
from tests.fix_sdk import OpenChromium
from tests.js.kills import problems, sends_over_kills

pytestmark = pytest.mark.slow

WAIT_MS = 60_000  # an outage of the tests is over within seconds
# The log is a window: only what is in view is in the document, the last message among it.
LAST = """() => [...document.querySelectorAll('.message .text')].at(-1)?.textContent"""


class Writing:
    """The page, on which alice writes to bob."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._last = ""

    async def say(self, text: str) -> None:
        self._last = text
        await self._page.locator("textarea").fill(text)
        await self._page.keyboard.press("Enter")

    async def wakes(self) -> None:
        await self._page.evaluate("dispatchEvent(new Event('online'))")

    async def is_online(self) -> None:
        await expect(self._page.locator(".side .state", has_text="online")).to_be_visible(timeout=WAIT_MS)

    async def is_sent(self) -> None:
        last = self._page.locator(".message", has=self._page.get_by_text(self._last, exact=True))
        await expect(last.locator(".tick")).to_have_attribute("aria-label", "Sent", timeout=WAIT_MS)


async def test_twenty_kills_under_the_page(
    own_postgres: OwnPostgres, make_process: MakeProcess, open_chromium: OpenChromium
) -> None:
    chatd = await make_process(
        database_url=own_postgres.conninfo, rate_messages=10_000, new_conversations_per_hour=1_000
    )
    async with open_chromium() as browser:
        page = await (await browser.new_context()).new_page()
        await page.goto(f"http://127.0.0.1:{chatd.port}/")
        await page.get_by_label("Your name").fill("alice")
        await page.keyboard.press("Enter")
        await page.get_by_placeholder("Search or start a chat").fill("bob")
        await page.keyboard.press("Enter")
        said = await sends_over_kills(Writing(page), chatd, random.Random(seed()))
        assert problems(said, own_postgres.conninfo) == []
        assert await page.evaluate(LAST) == said[-1]
        print(f"{len(said)} messages over {chatd.starts - 1} kills")
