"""Driven clients in tabs of a real Chromium: the tabs of a profile are one device.

profile = await browser.profile(user, url, token)    a profile of its own: locks, channels and IndexedDB are shared
tab = await profile.open()                           its client has started
await tab.crash()     await tab.close()              it is gone, at once or as users do it
await tab.freeze()    await tab.thaw()
"""

from __future__ import annotations

import asyncio
import mimetypes
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from playwright.async_api import Browser, BrowserContext, CDPSession, Error, Frame, Page, Route

from tests.js.driven import Driven

ORIGIN: Final = "http://127.0.0.1:4999"  # nobody is asked there: the test gives every file
SANDBOX: Final = "sandboxed.html"
WAIT_MS: Final = 30_000  # for what must come; far beyond what it takes


class Tab(Driven):
    """One tab. `page` is Playwright's; the client is in its main frame, or in `frame`."""

    def __init__(self, page: Page, user: str, name: str, changed: asyncio.Event) -> None:
        super().__init__(user, name, changed)
        self.page = page
        self.frame: Frame = page.main_frame
        self.is_frozen = False
        self.life: float | None = None  # of the page: a reload begins another
        self._cdp: CDPSession | None = None
        page.on("pageerror", lambda error: self.faults.append(str(error)))

    async def ask(self, name: str, *args: object) -> Any:
        return await self.frame.evaluate("(command) => globalThis.ask(command)", [name, *args])

    async def cdp(self) -> CDPSession:
        if self._cdp is None:
            self._cdp = await self.page.context.new_cdp_session(self.page)
        return self._cdp

    async def crash(self) -> None:
        """Its process ends at once."""
        self.has_ended = True
        crashed = asyncio.Event()
        self.page.on("crash", lambda _: crashed.set())
        cdp = await self.cdp()
        dying = asyncio.ensure_future(cdp.send("Page.crash"))  # never answered
        await crashed.wait()
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
        await self.page.close()

    async def close(self) -> None:
        self.has_ended = True
        await self.page.close()

    async def freeze(self) -> None:
        """It is told that it is about to be frozen. Chromium freezes no page that can be seen, as all are here."""
        self.is_frozen = True
        await self.page.evaluate("document.dispatchEvent(new Event('freeze'))")

    async def thaw(self) -> None:
        await self.page.evaluate("document.dispatchEvent(new Event('resume'))")
        self.is_frozen = False


class Profile:
    """What one user has open."""

    def __init__(
        self, context: BrowserContext, built: Path, user: str, url: str, token: str, changed: asyncio.Event
    ) -> None:
        self.context, self.user, self.url, self.token = context, user, url, token
        self.changed = changed
        self._built = built
        self.tabs: list[Tab] = []  # that were ever open

    async def begin(self) -> None:
        await self.context.route(f"{ORIGIN}/**", self._serve)
        await self.context.expose_binding("tell", self._told)

    @property
    def open_tabs(self) -> list[Tab]:
        return [tab for tab in self.tabs if not tab.has_ended]

    @property
    def leaders(self) -> list[Tab]:
        return [tab for tab in self.open_tabs if tab.role == "leader"]

    async def open(self) -> Tab:
        tab = self._tab(await self.context.new_page())
        await tab.page.goto(f"{ORIGIN}/index.html?{self._query}")
        await self._started(tab)
        return tab

    async def open_sandboxed(self) -> Tab:
        """In a frame without an origin, as an application may embed it."""
        tab = self._tab(await self.context.new_page())
        await tab.page.goto(f"{ORIGIN}/{SANDBOX}?{self._query}")
        tab.frame = next(frame for frame in tab.page.frames if frame is not tab.page.main_frame)
        await self._started(tab)
        return tab

    async def reload(self, tab: Tab) -> Tab:
        """The same page again: another client, in the same place."""
        tab.has_ended = True
        tab.life = tab.life or 0.0
        again = self._tab(tab.page)
        await tab.page.reload()
        await self._started(again)
        return again

    def _tab(self, page: Page) -> Tab:
        page.set_default_timeout(WAIT_MS)
        self.tabs.append(Tab(page, self.user, f"{self.user}-tab{len(self.tabs) + 1}", self.changed))
        return self.tabs[-1]

    @property
    def _query(self) -> str:
        return urlencode({"user": self.user, "url": self.url, "token": self.token})

    @staticmethod
    async def _started(tab: Tab) -> None:
        await tab.frame.wait_for_function("globalThis.ask !== undefined")

    async def _serve(self, route: Route) -> None:
        address = urlsplit(route.request.url)
        name = address.path.removeprefix("/")
        if name == SANDBOX:
            body = f'<iframe sandbox="allow-scripts" src="index.html?{address.query}"></iframe>'.encode()
        else:
            body = (self._built / name).read_bytes()
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        # Scripts of a sandboxed frame are asked for by an origin that is none.
        await route.fulfill(body=body, headers={"content-type": kind, "access-control-allow-origin": "*"})

    def _told(self, source: dict[str, Any], life: float, events: list[list[Any]]) -> None:
        tab = next((one for one in self.tabs if one.page == source["page"] and one.life in (life, None)), None)
        if tab is None or tab.has_ended:
            return
        tab.life = life
        for event in events:
            tab.heard(event)

    async def end(self) -> None:
        try:
            await self.context.close()
        except Error as e:
            if "closed" not in str(e):
                raise


class Profiles:
    """Profiles of one Chromium."""

    def __init__(self, browser: Browser, built: Path) -> None:
        self._browser, self._built = browser, built
        self.changed = asyncio.Event()
        self._profiles: list[Profile] = []

    async def profile(self, user: str, url: str, token: str) -> Profile:
        # Chromium does not know where a page comes from that a test fulfils, and asks before it reaches this machine.
        context = await self._browser.new_context(permissions=["local-network-access"])
        profile = Profile(context, self._built / "dist", user, url, token, self.changed)
        self._profiles.append(profile)
        await profile.begin()
        return profile

    async def end(self) -> None:
        for profile in self._profiles:
            await profile.end()
