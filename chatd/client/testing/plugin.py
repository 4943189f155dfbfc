"""The pytest fixture `fake_chatd`; needs pytest-asyncio.

In a conftest.py: `pytest_plugins = ["chatd.client.testing.plugin"]`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from chatd.client.testing.server import FakeChatd

WITHIN_S = 20.0


@pytest_asyncio.fixture
async def fake_chatd() -> AsyncIterator[FakeChatd]:
    """A chatd in memory, which also ends a test that hangs."""
    async with FakeChatd(within_s=WITHIN_S) as server:
        yield server
