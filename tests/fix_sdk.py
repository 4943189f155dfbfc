"""The SDK for JavaScript as applications have it, packed and installed.

driven_build    a folder with the programs of tests/js/driven, built once a worker
open_chromium   opens Debian's Chromium in the test's loop
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from tests.fix_browser import chromium

if TYPE_CHECKING:
    from playwright.async_api import Browser

OpenChromium: TypeAlias = "Callable[[], AbstractAsyncContextManager[Browser]]"


@pytest.fixture(scope="session")
def driven_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.js.driven import build_driven

    return build_driven(tmp_path_factory.mktemp("driven"))


@pytest.fixture(scope="session")
def open_chromium() -> OpenChromium:
    binary = chromium()

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Browser]:
        from playwright.async_api import async_playwright

        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=binary)
            try:
                yield browser
            finally:
                await browser.close()

    return opened
