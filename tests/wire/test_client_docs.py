"""docs/client.md: its programs run, and what it names exists."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import pytest

import chatd.client
from chatd.client import Client, Connection, Entry
from tests.fix_fake_chatd import FakeChatd
from tests.until import until

PAGE = Path(__file__).parents[2] / "docs" / "client.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


class Store(Protocol):
    def load(self) -> dict[str, Any] | None: ...
    def save(self, state: dict[str, Any]) -> None: ...
    def answer(self, entry: Entry) -> str: ...


def run(program: str, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Execute a block of the page as it stands; gives the function of that name."""
    names: dict[str, Any] = {
        "__name__": "bot", "asyncio": asyncio, "uuid": uuid, "Client": Client, "Connection": Connection, "Store": Store,
    }  # fmt: skip
    exec(compile(program, PAGE.name, "exec"), names)
    function: Callable[..., Coroutine[Any, Any, Any]] = names[name]
    return function


async def test_the_bot_answers(capsys: pytest.CaptureFixture[str]) -> None:
    bot = run(PROGRAMS[0], "main")
    assert len(PROGRAMS[0].strip().splitlines()) <= 22
    async with FakeChatd() as server:
        running = asyncio.create_task(bot(server.url, "echo"))
        await server.until_connected("echo")
        async with Client(server.url, token="bob", device="b") as bob:
            await bob.send("echo", "hi")
            entries = bob.entries()
            answer = await anext(entries)
            while answer.own:
                answer = await anext(entries)
            assert answer.body == "you said: hi"
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
    assert "connected as echo" in capsys.readouterr().out
    assert server.texts("bob", "echo") == ["hi", "you said: hi"], "it does not answer itself"


async def test_the_bot_with_a_store_answers_once_over_crashes() -> None:
    class Memory:
        state: dict[str, Any] | None = None
        crashes = 3

        def load(self) -> dict[str, Any] | None:
            return self.state

        def save(self, state: dict[str, Any]) -> None:
            if self.crashes and self.state is not None:
                self.crashes -= 1
                raise OSError("seeded: the process dies before its state is stored")
            self.state = state

        def answer(self, entry: Entry) -> str:
            return f"re {entry.seq}"

    serve, store = run(PROGRAMS[1], "serve"), Memory()
    async with FakeChatd() as server:
        for _ in range(4):
            running = asyncio.create_task(serve(server.url, "bot", store))
            session = await server.until_connected("bot")
            server.say("bob", "bot", "question")
            if store.crashes == 0:
                break
            with pytest.raises(OSError, match="seeded"):
                await running
            session.cut()
        conv = server.conv("bob", "bot")
        questions = {e["seq"] for e in conv.log if e["from"] == "bob"}
        await until(lambda: sum(e["from"] == "bot" for e in conv.log) >= len(questions))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert sorted(e["body"] for e in conv.log if e["from"] == "bot") == sorted(f"re {seq}" for seq in questions)


async def test_the_probe_runs() -> None:
    probe = run(PROGRAMS[2], "probe")
    async with FakeChatd() as server:
        assert await probe(server.url, "me") == 1


def test_every_name_of_the_page_exists() -> None:
    text = PAGE.read_text()
    assert len(PROGRAMS) == 3
    for name in re.findall(r"`client\.(\w+)", text):
        assert hasattr(Client, name), name
    for name in (
        "RequestError",
        "Stopped",
        "Closed",
        "OutboxFull",
        "EpochChanged",
        "NoToken",
        "ConnectionLost",
        "ProtocolError",
        "Unsent",
        "Reset",
    ):
        assert f"`{name}" in text
        assert hasattr(chatd.client, name)
