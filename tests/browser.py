"""What users do and see on the page in a real browser, by Playwright.

The fixture is in tests/fix_browser.py.

    Browsing    one browser and one chatd: `await browsing.tab("alice")` is a tab of a profile of its own;
                `browsing.server` for peers
    Tab         what a user does and sees there; `page` is Playwright's

The tabs reach the server through a proxy, so that a test can cut the line.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from playwright.async_api import Browser, Locator, Page, ViewportSize, expect

from tests.fix_server import Server
from tests.proxy import Proxy

WAIT_MS: Final = 15_000  # for what must come; far beyond what it takes
Size: TypeAlias = ViewportSize
PHONE: Final[Size] = {"width": 390, "height": 800}
LOW: Final[Size] = {"width": 1100, "height": 420}
DESK: Final[Size] = {"width": 1100, "height": 800}
# What is drawn because of something is drawn in the next frame, and what follows from that in the
# one after it.
SETTLED: Final = """() => new Promise((done) => {
  let left = 6;
  const step = () => ((left -= 1) === 0 ? setTimeout(done) : requestAnimationFrame(step));
  step();
})"""


class Tab:
    """One tab of one user."""

    def __init__(self, page: Page, proxy: Proxy, server: Server) -> None:
        self.page = page
        self._proxy, self._server = proxy, server
        self.dialog = page.locator("dialog")
        self.line = page.locator(".log .new")
        self.writing = page.locator("textarea")

    async def sign_in(self, name: str) -> None:
        await self.page.goto(f"http://127.0.0.1:{self._proxy.port}/")
        await self.page.get_by_label("Your name").fill(name)
        await self.page.keyboard.press("Enter")
        await expect(self.page.locator(".side .state", has_text="online")).to_be_visible()

    async def open(self, peer: str) -> None:
        await self.page.locator(".conversation", has_text=peer).click()
        await expect(self.page.locator(".pane-head .name")).to_have_text(peer)

    def message(self, text: str) -> Locator:
        return self.page.locator(".message", has=self.page.get_by_text(text, exact=True))

    async def hit(self, text: str, button: str) -> None:
        """A button of a message, found by its text."""
        await self.message(text).hover()
        await self.message(text).get_by_role("button", name=button).click()

    async def peers(self) -> list[str]:
        names: list[str] = await self.page.locator(".conversation .name").all_inner_texts()
        return names

    async def unread(self, count: int) -> None:
        """The title and the badges tell so many, and go on telling it."""
        title = f"({count}) chatd" if count else "chatd"
        await expect(self.page).to_have_title(title)
        await self.settled()
        assert await self.page.title() == title

    async def settled(self) -> None:
        """All that follows from what has happened is drawn."""
        await self.page.evaluate(SETTLED)

    async def scroll(self, text: str) -> None:
        """Down, until the end of the message is at the end of the pane. On the way more is fetched."""
        await self.page.wait_for_function(
            """(text) => {
              const pane = document.querySelector('.scroller');
              const shows = (node) => node.querySelector('.text').textContent === text;
              const found = [...pane.querySelectorAll('.message')].find(shows);
              const away = found
                ? found.getBoundingClientRect().bottom + 8 - pane.getBoundingClientRect().bottom
                : pane.clientHeight / 2;
              pane.scrollTop += away;
              return found !== undefined && Math.abs(away) < 1;
            }""",
            arg=text,
        )

    async def offline(self) -> None:
        self._proxy.upstream = 0
        self._proxy.drop()
        await expect(self.page.locator(".side .state", has_text="not connected")).to_be_visible()

    async def online(self) -> None:
        self._proxy.upstream = self._server.port
        await self.page.evaluate("dispatchEvent(new Event('online'))")
        await expect(self.page.locator(".side .state", has_text="not connected")).to_be_hidden()


class Browsing:
    """One Chromium and one chatd."""

    def __init__(self, browser: Browser, proxy: Proxy, server: Server, database: str, embedder: int) -> None:
        self.server = server
        self.database = database
        self.embedder = embedder  # port of the one origin that may show the page in a frame, http://localhost
        self._browser, self._proxy = browser, proxy
        self._test = 0

    def begin(self) -> None:
        self._test += 1
        self._proxy.upstream = self.server.port

    def user(self, name: str) -> str:
        """A name of this test's own."""
        return f"{name}{self._test}"

    async def tab(self, name: str, *, size: Size = DESK, clock: bool = False) -> Tab:
        """Signed in. `clock`: the page's time can be moved (`page.clock`)."""
        tab = await self.blank(size=size)
        if clock:
            await tab.page.clock.install()
        await tab.sign_in(name)
        return tab

    async def blank(self, *, size: Size = DESK) -> Tab:
        """A tab of a profile of its own, in which nothing is open."""
        context = await self._browser.new_context(viewport=size)
        context.set_default_timeout(WAIT_MS)
        return Tab(await context.new_page(), self._proxy, self.server)

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://127.0.0.1:{self._proxy.port}/"

    def cut(self) -> None:
        """The server is away for all tabs, until the next test."""
        self._proxy.upstream = 0
        self._proxy.drop()

    async def end(self) -> None:
        for context in self._browser.contexts:
            await context.close()
        for peer in self.server.peers:
            peer.ws.transport.abort()
        self.server.peers.clear()
