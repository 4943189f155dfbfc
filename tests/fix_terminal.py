"""The screen of `chatd chat` for tests: the app on a terminal of any size, and what is on its screen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from textual.pilot import Pilot

from chatd.client.testing import FakeChatd as Shipped
from chatd.tui.app import ChatApp
from tests.fix_fake_chatd import make_client
from tests.until import until

DEADLINE_S: Final = 120.0


class FakeChatd(Shipped):
    """One whose deadline leaves room for a screen that is drawn on a busy machine."""

    def __init__(self) -> None:
        super().__init__(within_s=DEADLINE_S)


def screen_of(app: ChatApp) -> str:
    """What somebody sees, without colours."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


class Terminal:
    """An app under a pilot."""

    def __init__(self, app: ChatApp, pilot: Pilot[None], server: FakeChatd) -> None:
        self.app, self.pilot, self.server = app, pilot, server

    @property
    def screen(self) -> str:
        return screen_of(self.app)

    async def shows(self, *texts: str, but: str | None = None) -> str:
        """Wait until all of these are on the screen, and `but` is not."""

        def holds() -> bool:
            return all(text in self.screen for text in texts) and (but is None or but not in self.screen)

        await until(holds, lambda: f"{texts} (but {but}) in\n{self.screen}", pause_s=0.02)
        return self.screen

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def write(self, text: str) -> None:
        await self.pilot.press(*("space" if c == " " else c for c in text))


@asynccontextmanager
async def terminal(
    server: FakeChatd, peer: str | None = None, size: tuple[int, int] = (100, 24), user: str = "me"
) -> AsyncIterator[Terminal]:
    """`chatd chat me [PEER]` at the fake server."""
    app = ChatApp(make_client(server.url, token=user), peer)
    try:
        async with app.run_test(size=size) as pilot:
            yield Terminal(app, pilot, server)
    finally:
        await app.controller.close(0)
