"""An application that installs the packed @chatd/client: its types hold, Vite builds it, and it chats.

The application is tests/js/consumer. npm unpacks the tarball beside it, offline; React and Vite are
those of the workspace.
"""

from __future__ import annotations

import mimetypes
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode, urlsplit

import pytest

from tests.browser import WAIT_MS, Browsing
from tests.js.driven import install_packed, tool, vite_build
from tests.js.test_gates import needs_node

if TYPE_CHECKING:
    from playwright.async_api import Page, Route

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), needs_node]

APP: Final = Path(__file__).parent / "consumer"
OF_THE_WORKSPACE: Final = ("react", "react-dom", "vite", "typescript", "@types/react", "@types/react-dom")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The application as Vite builds it."""
    folder = tmp_path_factory.mktemp("consumer")
    shutil.copytree(APP, folder, dirs_exist_ok=True)
    install_packed(folder, OF_THE_WORKSPACE)
    tool(folder, "node", "node_modules/typescript/bin/tsc", "-p", ".")
    return vite_build(folder)


async def opened(browsing: Browsing, built: Path, user: str, peer: str) -> Page:
    """The application in a tab, from the origin of the server."""
    # Chromium does not know where a page comes from that a test fulfils, and asks before it reaches this machine.
    context = await browsing._browser.new_context(permissions=["local-network-access"])
    context.set_default_timeout(WAIT_MS)

    async def serve(route: Route) -> None:
        name = urlsplit(route.request.url).path.removeprefix("/app/") or "index.html"
        kind = mimetypes.guess_type(name)[0]
        await route.fulfill(body=(built / name).read_bytes(), content_type=kind or "application/octet-stream")

    await context.route("**/app/**", serve)
    page = await context.new_page()
    query = urlencode({"user": user, "peer": peer, "token": browsing.server.token(user)})
    await page.goto(f"http://127.0.0.1:{browsing.server.port}/app/?{query}")
    return page


async def test_an_application_with_the_packed_client_builds_and_chats(browsing: Browsing, built: Path) -> None:
    from playwright.async_api import expect

    alice, bob = browsing.user("alice"), browsing.user("bob")
    page = await opened(browsing, built, alice, bob)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    await expect(page.get_by_role("status")).to_have_text("online")
    peer = await browsing.server.connect(bob)
    await page.get_by_label("Text").fill("hello from the application")
    await page.keyboard.press("Enter")
    assert (await peer.push("entry"))["body"] == "hello from the application"
    await expect(page.locator("li.sent")).to_have_text(f"{alice}: hello from the application")
    await peer.say(alice, "hello back")
    await expect(page.get_by_role("listitem")).to_have_text(
        [f"{alice}: hello from the application", f"{bob}: hello back"]
    )
    await page.reload()
    await expect(page.get_by_role("listitem")).to_have_count(2)
    assert problems == []
