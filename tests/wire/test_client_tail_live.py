"""`chatd tail` against a server: it shows what comes, and leaves no trace."""

from __future__ import annotations

import asyncio
import io

import pytest

from chatd.client import Stopped
from chatd.client.tail import tail
from tests.fix_fake_chatd import FakeChatd
from tests.until import until


class Lines(io.StringIO):
    """Tells when a line was flushed."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed = asyncio.Event()

    def flush(self) -> None:
        self.flushed.set()

    async def until(self, count: int) -> list[str]:
        await until(lambda: self.getvalue().count("\n") >= count, changed=self.flushed)
        return [one.split(" ", 1)[1] for one in self.getvalue().splitlines()]


async def test_it_shows_both_sides_live_over_a_cut_and_acks_nothing() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", "before")
        out = Lines()
        running = asyncio.create_task(tail(server.url, "me", out=out, err=io.StringIO()))
        session = await server.until_connected("me")
        conv = server.say("bob", "me", "hi \x1b[2J")
        server.say("me", "bob", "hello")
        assert await out.until(2) == [r"bob > hi \x1b[2J", "bob < hello"]
        session.cut()
        server.say("bob", "me", "back?")
        assert (await out.until(3))[2] == "bob > back?"
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert conv.cursors == {}


async def test_a_bad_token_is_raised() -> None:
    async with FakeChatd() as server:
        server.refused_tokens["me"] = "unauthorized"
        with pytest.raises(Stopped, match="unauthorized"):
            await tail(server.url, "me", out=io.StringIO(), err=io.StringIO())
