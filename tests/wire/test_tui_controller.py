"""The controller against the fake server: what it asks, and what the model knows then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chatd.tui.controller import CONVERSATIONS_MAX, PAGE, Controller
from tests.fix_fake_chatd import FakeChatd, Frame, Session, make_client
from tests.until import until


@asynccontextmanager
async def controller(server: FakeChatd) -> AsyncIterator[Controller]:
    it = Controller(make_client(server.url), lambda: None)
    running = asyncio.create_task(it.run())
    try:
        yield it
    finally:
        await it.close(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def requests(session: Session, t: str) -> list[Frame]:
    return [frame for frame in session.requests if frame["t"] == t]


async def test_the_whole_list_is_read_in_pages_and_watched() -> None:
    async with FakeChatd() as server:
        for n in range(2 * PAGE + 3):
            server.say(f"user{n}", "me", "hi")
        async with controller(server) as it:
            await until(lambda: len(it.model.conversations) == 2 * PAGE + 3)
            session = server.session("me")
            assert len(requests(session, "conversations")) == 3
            await until(lambda: len(session.watched) == 2 * PAGE + 3)
            await until(lambda: len(it.model.presence) == 2 * PAGE + 3)
            assert it.model.user == "me"
            assert CONVERSATIONS_MAX > PAGE


async def test_somebody_new_is_watched_too() -> None:
    async with FakeChatd() as server, controller(server) as it:
        session = await server.until_connected("me")
        server.say("bob", "me", "hi")
        await until(lambda: session.watched == ["bob"])
        assert it.model.unread == 1


async def test_typing_is_told_once_in_a_while_and_not_where_nobody_has_written() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", "hi")
        server.say("me", "bob", "ho")
        async with controller(server) as it:
            session = await server.until_connected("me")
            await until(lambda: it.model.line == "online" and it.model.conversations)
            it.open("zed")
            it.typed()
            it.open("bob")
            for _ in range(5):
                it.typed()
            await until(lambda: requests(session, "typing"))
            it.send("bob", "done")
            await until(lambda: server.texts("bob", "me")[-1] == "done")
            assert len(requests(session, "typing")) == 1


async def test_what_was_seen_is_told_once_and_only_if_others_wrote() -> None:
    async with FakeChatd() as server:
        conv = server.say("bob", "me", "hi")
        async with controller(server) as it:
            session = await server.until_connected("me")
            it.open("bob")
            await until(lambda: it.model.conversation("bob").log)
            it.see()
            it.see()
            await until(lambda: conv.cursors.get("me") == [1, 1])
            it.send("bob", "own")
            await until(lambda: it.model.conversation("bob").newest == 2)
            it.see()
            server.say("bob", "me", "more")
            await until(lambda: it.model.conversation("bob").newest == 3)
            it.see()
            await until(lambda: conv.cursors.get("me") == [3, 3])
            assert [frame["seq"] for frame in requests(session, "read")] == [1, 3]


async def test_a_page_that_was_asked_of_the_log_before_is_asked_again() -> None:
    async with FakeChatd() as server:
        conv = server.say("bob", "me", "one", "lost")
        server.fault = lambda _session, frame: "cut" if frame["t"] == "history" else None
        async with controller(server) as it:
            await server.until_connected("me")
            it.open("bob")
            await until(lambda: any(requests(one, "history") for one in server.all_sessions))
            server.epoch = "epoch-2"
            conv.log.pop()
            server.fault = lambda _session, _frame: None
            await until(lambda: it.model.conversation("bob").loaded)
            assert [message.body for message in it.model.conversation("bob").log] == ["one"]


async def test_a_refused_history_is_a_note_and_not_asked_for_ever() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", "hi")
        server.fault = lambda _session, frame: {"code": "internal"} if frame["t"] == "history" else None
        async with controller(server) as it:
            it.open("bob")
            await until(lambda: it.model.notes)
            assert it.model.notes == ["the log is not to be had: internal: internal"]
            assert not it.model.conversation("bob").has_older


async def test_away_is_told() -> None:
    async with FakeChatd() as server, controller(server) as it:
        session = await server.until_connected("me")
        it.away(True)
        await until(lambda: [frame["state"] for frame in requests(session, "presence")] == ["away"])


async def test_an_end_is_in_the_model_with_its_reason() -> None:
    async with FakeChatd() as server, controller(server) as it:
        session = await server.until_connected("me")
        session.close(4004, "replaced")
        await until(lambda: it.model.line == "stopped")
        assert it.model.reason == "replaced"


async def test_a_refused_token_is_an_end_too() -> None:
    async with FakeChatd() as server:
        server.refused_tokens["me"] = "unauthorized"
        async with controller(server) as it:
            await until(lambda: it.model.line == "stopped")
            assert it.model.reason
