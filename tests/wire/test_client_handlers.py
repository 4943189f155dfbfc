"""Programs of handlers: side by side, in order for each person, and a clean end by a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from chatd.client import Entry, Line, MemoryStore, Receipt, Stopped
from tests.fix_fake_chatd import FakeChatd, make_client
from tests.until import until


async def test_each_message_of_somebody_else_is_handled_and_answered() -> None:
    async with FakeChatd() as server:
        client = make_client(server.url)
        everything: list[Entry] = []

        @client.on_message
        async def answer(entry: Entry) -> None:
            await entry.reply(f"re {entry.body}")

        @client.on_entry
        async def note(entry: Entry) -> None:
            everything.append(entry)

        async with client:
            serving = asyncio.create_task(client.serve())
            server.say("bob", "me", "1", "2")
            conv = server.conv("bob", "me")
            server.add(conv, "bob", "edit", "cid-x", ref=1, body="1!")
            await until(lambda: len(everything) == 5)
            await client.close()
            await serving
        assert sorted(str(e["body"]) for e in conv.log) == ["1", "1!", "2", "re 1", "re 2"]


async def test_people_are_served_side_by_side_and_each_in_order() -> None:
    async with FakeChatd() as server:
        client = make_client(server.url)
        at_work: set[str] = set()
        most = 0
        order: dict[str, list[int]] = {}
        free = asyncio.Event()

        @client.on_message
        async def work(entry: Entry) -> None:
            nonlocal most
            assert entry.peer not in at_work
            at_work.add(entry.peer)
            most = max(most, len(at_work))
            if most == 3:
                free.set()
            await free.wait()
            at_work.discard(entry.peer)
            order.setdefault(entry.peer, []).append(entry.seq)

        async with client:
            serving = asyncio.create_task(client.serve(side_by_side=3))
            for _ in range(3):
                for n in range(5):
                    server.say(f"u{n}", "me", "x")
            await until(lambda: sum(map(len, order.values())) == 15)
            await client.close()
            await serving
        assert most == 3
        assert all(seqs == [1, 2, 3] for seqs in order.values())


async def test_a_handler_that_fails_ends_nothing_and_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    async with FakeChatd() as server:
        client = make_client(server.url, store=store)
        handled: list[str | None] = []

        @client.on_message
        async def work(entry: Entry) -> None:
            handled.append(entry.body)
            if entry.body == "bad":
                raise ZeroDivisionError("seeded")

        async with client:
            serving = asyncio.create_task(client.serve())
            server.say("bob", "me", "bad", "good")
            await until(lambda: len(handled) == 2)
            await client.close()
            await serving
        assert "a handler failed on entry 1 of bob" in caplog.text
        async with make_client(server.url, store=store) as client:
            server.say("bob", "me", "new")
            assert (await anext(client.entries())).body == "new"


async def test_events_are_handled_by_their_class_and_the_line_from_the_start() -> None:
    async with FakeChatd() as server:
        client = make_client(server.url)
        lines: list[str] = []
        receipts: list[int] = []

        @client.on_event(Line)
        def line(event: Line) -> None:
            lines.append(event.state)
            raise ZeroDivisionError("it hurts nobody else")

        @client.on_event(Receipt)
        async def receipt(event: Receipt) -> None:
            receipts.append(event.read)

        async with client:
            serving = asyncio.create_task(client.serve())
            await client.send("bob", "hi")
            server.say("bob", "me", "hello")
            async with make_client(server.url, token="bob", device="b") as bob:
                await bob.read("me", 1)
            await until(lambda: receipts and lines)
            await client.close()
            await serving
        assert (lines[0], receipts) == ("online", [1])


async def test_a_client_that_ends_otherwise_says_so() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        serving = asyncio.create_task(client.serve())
        await asyncio.sleep(0)
        server.session("me").close(4004, "replaced")
        with pytest.raises(Stopped, match="replaced"):
            await serving


PROGRAM = """
import asyncio, logging, sys
from chatd.client import Client, FileStore

logging.basicConfig(level=logging.INFO, stream=sys.stdout)
client = Client(sys.argv[1], token="me", device="bot", store=FileStore(sys.argv[2]))

@client.on_message
async def answer(entry):
    print("handling", entry.body, flush=True)
    if entry.body == "for ever":
        await asyncio.sleep(1_000)
    await entry.reply("re " + entry.body)

client.run()
print("ended in good order")
"""


async def program(url: str, path: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, url, str(path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=dict(os.environ),
    )  # fmt: skip


async def until_said(process: asyncio.subprocess.Process, text: str) -> str:
    assert process.stdout is not None
    said = ""
    while text not in said:
        line = await process.stdout.readline()
        assert line, said
        said += line.decode()
    return said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_a_program_in_good_order(number: signal.Signals, tmp_path: Path) -> None:
    async with FakeChatd() as server:
        running = await program(server.url, tmp_path / "state")
        await until_said(running, "online as me")
        server.say("bob", "me", "1")
        await until(lambda: len(server.conv("bob", "me").log) == 2)
        running.send_signal(number)
        await until_said(running, "ended in good order")
        assert await running.wait() == 0
        server.say("bob", "me", "2")
        running = await program(server.url, tmp_path / "state")
        await until(lambda: len(server.conv("bob", "me").log) == 4)
        running.send_signal(number)
        assert "handling 1" not in await until_said(running, "ended in good order")
        await running.wait()


async def test_a_second_signal_ends_a_program_at_once_and_its_work_is_not_done(tmp_path: Path) -> None:
    async with FakeChatd() as server:
        running = await program(server.url, tmp_path / "state")
        await until_said(running, "online as me")
        server.say("bob", "me", "for ever")
        await until_said(running, "handling for ever")
        running.send_signal(signal.SIGINT)
        running.send_signal(signal.SIGTERM)
        await until_said(running, "ended in good order")
        assert await running.wait() == 0
        running = await program(server.url, tmp_path / "state")
        await until_said(running, "handling for ever")
        running.kill()
        await running.wait()


async def test_a_signal_ends_a_program_that_finds_no_server(tmp_path: Path) -> None:
    async with FakeChatd() as server:
        url = server.url
        await server.stop()
        running = await program(url, tmp_path / "state")
        await until_said(running, "offline: unreachable")
        running.send_signal(signal.SIGTERM)
        await until_said(running, "ended in good order")
        assert await running.wait() == 0
        await server.listen()
