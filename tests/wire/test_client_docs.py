"""docs/client.md: its programs run, and what it names exists."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import chatd.client
from chatd.client import Client, Connection, Entry, FileStore, Line, sync
from tests.fix_fake_chatd import FakeChatd
from tests.until import until

PAGE = Path(__file__).parents[2] / "docs" / "client.md"
TYPESCRIPT = Path(__file__).parents[2] / "clients" / "js" / "src"
CLIENT_TS = (TYPESCRIPT / "core.ts").read_text() + (TYPESCRIPT / "client.ts").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def run(program: str, name: str) -> Callable[..., Any]:
    """Execute a block of the page as it stands; gives the function of that name."""
    names: dict[str, Any] = {
        "__name__": "bot", "asyncio": asyncio, "uuid": uuid, "Client": Client, "Connection": Connection,
        "Entry": Entry, "FileStore": FileStore, "FakeChatd": FakeChatd, "Line": Line, "Callable": Callable,
        "sync": sync, "asynccontextmanager": asynccontextmanager, "AsyncIterator": AsyncIterator, "os": os,
        "Request": SimpleNamespace, "socket": socket,
    }  # fmt: skip
    exec(compile(program, PAGE.name, "exec"), names)
    function: Callable[..., Any] = names[name]
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


async def test_the_bot_of_handlers_answers_once_over_crashes(tmp_path: Path) -> None:
    make_bot = run(PROGRAMS[1], "make_bot")
    async with FakeChatd() as server:
        for _ in range(4):
            bot: Client = make_bot(server.url, "bot", str(tmp_path / "state"))
            async with bot:
                serving = asyncio.create_task(bot.serve())
                server.say("bob", "bot", "question")
                conv = server.conv("bob", "bot")
                await until(lambda: sum(e["from"] == "bot" for e in conv.log) * 2 == len(conv.log))
                server.session("bot").cut()
                await bot.close(drain=False)
                await serving
        assert [e["body"] for e in conv.log] == ["question", "you said: question"] * 4


async def test_the_lifespan_of_a_web_application_opens_and_closes_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    lifespan, order_sent = run(PROGRAMS[2], "lifespan"), run(PROGRAMS[2], "order_sent")
    lifespan.__wrapped__.__globals__["shop_token"] = lambda renew: "shop"  # type: ignore[attr-defined]
    async with FakeChatd() as server:
        monkeypatch.setenv("CHATD_URL", server.url)
        async with lifespan(None) as state:
            request = SimpleNamespace(state=SimpleNamespace(**state), path_params={"customer": "bob"})
            assert await order_sent(request) == {"seq": 1}
            client: Client = state["chat"]
        assert server.texts("bob", "shop") == ["Your order is on its way"]
        assert client.line.state == "stopped"


async def test_the_script_asks_and_gets_an_answer() -> None:
    ask = run(PROGRAMS[4], "ask")
    async with FakeChatd() as server:
        asking = asyncio.create_task(asyncio.to_thread(ask, server.url, "me", "bob", "how are you?"))
        await until(lambda: server.texts("bob", "me"))
        server.say("bob", "me", "well")
        assert await asking == "well"


async def test_the_test_of_the_page_passes(tmp_path: Path) -> None:
    test = run(PROGRAMS[5], "test_the_answer_survives_a_cut")
    async with FakeChatd() as server:
        await test(server, run(PROGRAMS[1], "make_bot"), str(tmp_path / "state"))


async def test_the_probe_runs() -> None:
    probe = run(PROGRAMS[3], "probe")
    async with FakeChatd() as server:
        assert await probe(server.url, "me") == 1


def test_every_name_of_the_page_exists() -> None:
    text = PAGE.read_text()
    assert len(PROGRAMS) == 6
    for name in re.findall(r"`client\.(\w+)", text):
        assert hasattr(Client, name), name
    for name in (
        "RequestError",
        "Stopped",
        "Closed",
        "OutboxFull",
        "EpochChanged",
        "CidTaken",
        "Withdrawn",
        "Sending",
        "StoreInUse",
        "NoToken",
        "ConnectionLost",
        "ProtocolError",
        "Unsent",
        "Reset",
    ):
        assert f"`{name}" in text
        assert hasattr(chatd.client, name)


TABLES = {  # heading -> rows
    section.split("\n")[0]: [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")
    ][2:]
    for section in PAGE.read_text().split("\n## ")
}


def words(cell: str) -> set[str]:
    """The names of a cell: of `Client(url, token=)` and `Entry.reply` the first ones."""
    return {found.removeprefix("new ") for found in re.findall(r"`((?:new )?\w+(?:\.\w+)?)", cell)}


def test_each_field_of_each_class_is_on_the_page() -> None:
    rows = {row[0].strip("`"): words(row[1]) for row in TABLES["The classes and their fields"]}
    public = {name: getattr(chatd.client, name) for name in chatd.client.__all__}
    classes = {name: one for name, one in public.items() if dataclasses.is_dataclass(one)}
    assert rows.keys() == classes.keys()
    for name, one in classes.items():
        assert {field.name for field in dataclasses.fields(one)} <= rows[name], name


def _typescript() -> set[str]:
    """What `@chatd/client` gives to an app: methods and fields of ChatClient, events, exports."""
    options = (TYPESCRIPT / "options.ts").read_text()
    methods = re.findall(r"^  (?:async |get |readonly )?([a-z]\w*)(?:<.*?>)?[(:]", CLIENT_TS, re.MULTILINE)
    events = options.split("export interface ChatEvents {")[1].split("\n}")[0]
    exports = re.findall(r"\w+", (TYPESCRIPT / "index.ts").read_text())
    return {*methods, *re.findall(r"^  (\w+):", events, re.MULTILINE), *exports} - {"constructor"}


def test_the_names_of_both_sdks_are_those_of_the_table() -> None:
    table = TABLES["The names of both SDKs"]
    python = set[str]().union(*(words(row[0]) for row in table))
    for name in python - {"async"}:
        top, _, rest = name.partition(".")
        known = getattr(chatd.client, top, None) or getattr(Client, top, None)
        assert known is not None or top in ("url", "device"), name
        assert not rest or hasattr(known, rest), name
    public = {name for name in dir(Client) if not name.startswith("_")}
    assert public <= python, public - python
    typescript = set[str]().union(*(words(row[1]) for row in table))
    assert typescript - _typescript() == set()
    methods = set(re.findall(r"^  (?:async |get )?([a-z]\w*)(?:<.*?>)?\(", CLIENT_TS, re.MULTILINE))
    assert methods - {"constructor"} <= typescript, methods - typescript
