"""`chatd chat` for pipes: every line is sent once and in order, and what cannot be is told."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator, Iterable

import pytest

from chatd.client import Stopped
from chatd.tui.lines import AHEAD_MAX, Lines, lines_of
from tests.fix_fake_chatd import FakeChatd, make_client
from tests.until import until


async def given(lines: Iterable[str]) -> AsyncIterator[str]:
    for line in lines:
        yield line


async def run(server: FakeChatd, *lines: str) -> tuple[Lines, list[str], str]:
    out, err = io.StringIO(), io.StringIO()
    chat = Lines(make_client(server.url), "bob", out=out, err=err)
    await chat.chat(given(lines))
    return chat, [line.split(" ", 1)[1] for line in out.getvalue().splitlines()], err.getvalue()


async def test_each_line_is_a_message_and_is_shown_with_what_arrives() -> None:
    async with FakeChatd() as server:
        chat, shown, said = await run(server, "one", "", "  ", "two \x07", "three")
        assert server.texts("me", "bob") == ["one", "two \x07", "three"]
        assert shown == ["bob < one", r"bob < two \x07", "bob < three"]
        assert (chat.refused, said) == (0, "")


async def test_more_lines_than_are_read_ahead_keep_their_order() -> None:
    async with FakeChatd() as server:
        lines = [f"line {n}" for n in range(2 * AHEAD_MAX + 1)]
        _, shown, _ = await run(server, *lines)
        assert server.texts("me", "bob") == lines
        assert shown == [f"bob < {line}" for line in lines]


async def test_a_line_that_is_refused_is_told_and_the_others_go() -> None:
    async with FakeChatd() as server:
        chat, _, said = await run(server, "a", "x" * 2_049, "b")
        assert server.texts("me", "bob") == ["a", "b"]
        assert chat.refused == 1
        assert "2049 bytes of UTF-8; 2048 is the most" in said
        assert len(said.splitlines()) == 1


async def test_what_arrives_meanwhile_is_shown_and_other_conversations_are_not() -> None:
    async with FakeChatd() as server:
        out = io.StringIO()
        gate = asyncio.Event()

        async def source() -> AsyncIterator[str]:
            yield "hi"
            await gate.wait()

        chat = Lines(make_client(server.url), "bob", out=out, err=io.StringIO())
        running = asyncio.create_task(chat.chat(source()))
        await until(lambda: server.texts("me", "bob") == ["hi"])
        server.say("carol", "me", "not this")
        server.say("bob", "me", "this")
        await until(lambda: "bob > this" in out.getvalue())
        gate.set()
        await running
        assert "not this" not in out.getvalue()


async def test_an_end_by_the_server_is_raised() -> None:
    async with FakeChatd() as server:

        async def source() -> AsyncIterator[str]:
            server.session("me").close(4004, "replaced")
            await asyncio.Event().wait()
            yield "never"

        chat = Lines(make_client(server.url), "bob", out=io.StringIO(), err=io.StringIO())
        with pytest.raises(Stopped, match="replaced"):
            await chat.chat(source())


async def test_the_lines_of_a_pipe_are_read_beside_the_loop() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader) as stream:
        lines = lines_of(stream)
        os.write(writer, b"one\r\ntwo\n")
        assert [await anext(lines), await anext(lines)] == ["one", "two"]
        os.write(writer, b"three")
        os.close(writer)
        assert [line async for line in lines] == ["three"]
