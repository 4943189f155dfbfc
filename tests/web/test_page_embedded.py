"""The page in a frame of an application: the code of docs/guides/embed.md, in Chromium."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

pytest.importorskip("playwright.async_api", reason="playwright is not installed: `make setup` installs it")

from playwright.async_api import ConsoleMessage, expect

from tests.browser import Browsing
from tests.site.blocks import blocks

pytestmark = pytest.mark.asyncio(loop_scope="module")

GUIDE: Final = Path(__file__).parents[2] / "docs" / "guides" / "embed.md"


def example(address: str) -> str:
    """The host's page of the guide, around our chatd."""
    (block,) = [one for one in blocks(GUIDE.read_text()) if one.language == "html"]
    assert block.code.count("https://chat.example.org/") == 1
    assert len(block.code.strip().splitlines()) <= 20
    return "<!doctype html><title>host</title>" + block.code.replace("https://chat.example.org/", address)


@asynccontextmanager
async def application(port: int, page: str, token: Callable[[], str]) -> AsyncIterator[None]:
    """The host application: its page, and its route that makes tokens."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        said = token() if head.startswith(b"POST /chat-token ") else page if head.startswith(b"GET / ") else ""
        status = b"200 OK" if said else b"404 Not Found"
        body = said.encode()
        writer.write(b"HTTP/1.1 %b\r\nContent-Type: text/html\r\nContent-Length: %d\r\n" % (status, len(body)))
        writer.write(b"Connection: close\r\n\r\n" + body)
        writer.close()

    server = await asyncio.start_server(answer, "localhost", port)
    async with server:
        yield


async def test_the_host_signs_its_user_in_and_renews_the_token(browsing: Browsing) -> None:
    alice, given = browsing.user("alice"), []

    def token() -> str:
        given.append(browsing.server.token(alice))
        return given[-1]

    bob = await browsing.server.connect(browsing.user("bob"))
    tab = await browsing.blank()
    async with application(browsing.embedder, example(browsing.address), token):
        await tab.page.goto(f"http://localhost:{browsing.embedder}/")
        frame = tab.page.frame_locator("#chat")
        await expect(frame.locator(".side .name").first).to_have_text(alice)
        await expect(frame.locator(".side .state", has_text="online")).to_be_visible()
        await bob.say(alice, "hello")
        await expect(frame.locator(".conversation .preview-text")).to_have_text("hello")
        assert len(given) == 1
        await expect(frame.get_by_role("button", name="Use another name")).to_have_count(0)


async def test_a_token_of_the_host_that_is_refused_is_asked_for_anew_and_nothing_else_is_asked(
    browsing: Browsing,
) -> None:
    alice, good = browsing.user("alice"), asyncio.Event()
    tab = await browsing.blank()
    async with application(
        browsing.embedder,
        example(browsing.address),
        lambda: browsing.server.token(alice) if good.is_set() else "no.such.token",
    ):
        await tab.page.goto(f"http://localhost:{browsing.embedder}/")
        frame = tab.page.frame_locator("#chat")
        await expect(frame.get_by_role("alert")).to_contain_text("This token is refused: ")
        await expect(frame.get_by_role("textbox")).to_have_count(0)
        again = frame.get_by_role("button", name="Try again")
        await again.click()
        await expect(again).to_be_enabled()
        await expect(frame.get_by_role("alert")).to_contain_text("This token is refused: ")
        good.set()
        await again.click()
        await expect(frame.locator(".side .state", has_text="online")).to_be_visible()


async def test_a_host_that_has_no_token_leaves_the_sign_in(browsing: Browsing) -> None:
    tab = await browsing.blank()
    async with application(browsing.embedder, example(browsing.address), lambda: ""):
        await tab.page.goto(f"http://localhost:{browsing.embedder}/")
        await expect(tab.page.frame_locator("#chat").get_by_label("Your name")).to_be_visible()


async def test_another_origin_cannot_show_the_page(browsing: Browsing) -> None:
    tab = await browsing.blank()
    refused = asyncio.Event()

    def heard(said: ConsoleMessage) -> None:
        if "frame-ancestors" in said.text:
            refused.set()

    tab.page.on("console", heard)
    async with application(browsing.embedder, example(browsing.address), lambda: ""):
        # The same application by another name is another origin
        await tab.page.goto(f"http://127.0.0.1:{browsing.embedder}/")
        await asyncio.wait_for(refused.wait(), 15)
        assert [one.url for one in tab.page.frames if one.url == browsing.address] == []
