"""The page in a real Chromium, Debian's, driven by Playwright:

`make setup` installs both where it may; where one is missing the tests skip aloud.

    browsing    one Chromium and one chatd for a module (`tests/browser.py`)

Tests of such a module run in one event loop: `pytestmark =
pytest.mark.asyncio(loop_scope="module")`. They share the database: each has users of its own, by
`browsing.user("alice")`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from chatd.config import Settings
from chatd.postgres.embedded import Embedded
from chatd.server import Node
from tests.fix_postgres import databases
from tests.fix_server import Server
from tests.ports import free_port
from tests.proxy import Proxy

if TYPE_CHECKING:
    from tests.browser import Browsing


def chromium() -> str:
    pytest.importorskip("playwright", reason="playwright is not installed: `make setup`")
    from bench.scenarios import browser

    found = browser.chromium()
    if found is None:
        pytest.skip("chromium is not installed: `apt-get install chromium`, or `make setup` as root")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser_and_server(
    postgres: Embedded, template_db: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Browsing]:
    binary = chromium()
    from playwright.async_api import async_playwright, expect

    from tests.browser import WAIT_MS, Browsing

    folder = tmp_path_factory.mktemp("browser")
    limits: dict[str, Any] = {
        "rate_messages": 10_000,
        "frames_per_s": 100_000,
        "frames_burst": 100_000,
        "new_conversations_per_hour": 10_000,
    }
    expect.set_options(timeout=WAIT_MS)
    databases_of_module = databases(postgres, template_db)
    database = next(databases_of_module)()
    embedder = free_port()
    limits["embed_origins"] = [f"http://localhost:{embedder}"]
    node = Node(Settings(data_dir=folder, port=0, admin_port=0, database_url=SecretStr(database), **limits))
    try:
        await node.start()
        proxy = Proxy(node.port)
        await proxy.start()
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=binary)
            yield Browsing(browser, proxy, Server(node), database, embedder)
            await browser.close()
        await proxy.stop()
    finally:
        await node.stop()
        next(databases_of_module, None)


@pytest_asyncio.fixture(loop_scope="module")
async def browsing(browser_and_server: Browsing) -> AsyncIterator[Browsing]:
    browser_and_server.begin()
    yield browser_and_server
    await browser_and_server.end()
