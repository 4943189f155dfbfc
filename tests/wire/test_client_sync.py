"""The client in a thread: scripts, notebooks, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn, TypeVar

import pytest

from chatd.client import Entry, Line, MemoryStore, OutboxFull, RequestError, Reset, Stopped, Withdrawn, sync
from tests.fix_fake_chatd import FakeChatd, NoJitter
from tests.until import until

T = TypeVar("T")


class SlowStore(MemoryStore):
    def load(self) -> NoReturn:
        raise TimeoutError("the disk")


def script(url: str, **keys: object) -> sync.Client:
    settings = {"token": "me", "device": "script", "rng": NoJitter()} | keys
    return sync.Client(url, **settings)  # type: ignore[arg-type]


async def run(program: Callable[[], T]) -> T:
    """In a thread without a loop, as a script. The server's loop goes on here."""
    return await asyncio.to_thread(program)


async def test_a_script_sends_reads_and_asks() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", "before")

        def program() -> list[str | None]:
            with script(server.url) as client:
                assert (client.user, client.epoch, client.connected) == ("me", "epoch-1", True)
                assert client.line == Line("online")
                assert client.limits.body_bytes == 2048
                sent = client.send("bob", "hi")
                assert (sent.seq, client.edit("bob", 2, "hi!").seq, client.delete("bob", 2).seq) == (2, 3, 4)
                sending = client.submit("bob", "later")
                assert (sending.result(timeout_s=5.0).seq, sending.state, sending.error) == (5, "sent", None)
                assert (sending.cancel(), sending.amend("no"), client.waiting()) == (False, False, [])
                assert (sending.kind, sending.body) == ("message", "later")
                assert (sending.peer, len(sending.cid)) == ("bob", 36)
                client.read("bob", 5)
                client.ack("bob", 5)
                client.typing("bob")
                client.set_away(True)
                client.room()
                with pytest.raises(RuntimeError, match="callable"):
                    client.refresh()
                assert [p.state for p in client.watch(["bob"])] == ["offline"]
                assert client.history("bob", limit=1).head == 5
                assert [item.peer for item in client.conversations().items] == ["bob"]
                assert [item.peer for item in client.iter_conversations()] == ["bob"]
                assert [e.seq for e in client.iter_history("bob", after=1)] == [2, 3, 4, 5]
                with pytest.raises(RequestError, match="no_conversation"):
                    client.history("nobody")
                return [e.body for e in client.entries(timeout_s=0.05)]

        assert await run(program) == ["hi", "hi!", None, "later"]


async def test_entries_and_events_are_iterated_and_answered() -> None:
    async with FakeChatd() as server:
        store = MemoryStore()

        def program() -> None:
            with script(server.url, store=store) as client:
                clients.append(client)
                started.set()
                for entry in client.entries():
                    if not entry.own:
                        client.reply(entry, f"re {entry.body}")
                    if entry.body == "re 2":
                        break
                waits.set()
                assert client.wait_for(Entry, lambda e: e.body == "3", timeout_s=5.0).seq == 5
                events = [event for event in client.events(timeout_s=0.0) if not isinstance(event, Line)]
                assert events == []

        started, waits = threading.Event(), threading.Event()
        clients: list[sync.Client] = []
        running = asyncio.create_task(run(program))
        await until(started.is_set)
        server.say("bob", "me", "1", "2")
        await until(lambda: "re 2" in server.texts("bob", "me"))
        await until(waits.is_set)
        await until(lambda: clients[0]._client._observers)
        server.say("bob", "me", "3")
        await running

        def again() -> list[str | None]:
            with script(server.url, store=store) as client:
                assert client.state()["user"] == "me"
                return [e.body for e in client.entries(timeout_s=0.05)]

        assert await run(again) == ["3"], "the loop was left behind `re 2`"


async def test_it_works_where_a_loop_runs_already() -> None:
    """As in a notebook, whose cells run in a loop."""
    async with FakeChatd() as server:

        async def cell() -> int:
            with script(server.url) as client:
                return client.send("bob", "hi").seq

        assert await run(lambda: asyncio.run(cell())) == 1


async def test_what_is_wrong_is_raised_here() -> None:
    async with FakeChatd() as server:

        def program() -> None:
            client = script(server.url)
            with pytest.raises(RuntimeError, match="not open"):
                client.send("bob", "hi")
            client.close()
            with client, pytest.raises(RuntimeError, match="lives once"):
                client.open()
            with pytest.raises(RuntimeError, match="is closed"):
                client.send("bob", "hi")
            client.close()
            assert client.state()["user"] == "me"
            server.refused_tokens["bad"] = "unauthorized"
            with pytest.raises(Stopped, match="unauthorized"):
                script(server.url, token="bad").open()
            before = threading.active_count()
            server.fault = lambda _s, frame: "ignore" if frame["t"] == "hello" else None
            with pytest.raises(TimeoutError, match=r"no welcome from ws://.* within 0.05 s \(.*connecting\); see that"):
                script(server.url).open(timeout_s=0.05)
            with pytest.raises(TimeoutError, match=r"^the disk$"):
                script(server.url, store=SlowStore()).open(timeout_s=5.0)
            assert threading.active_count() == before

        await run(program)


async def test_a_send_that_takes_too_long_and_one_that_is_taken_back() -> None:
    async with FakeChatd() as server:

        def program() -> None:
            with script(server.url, outbox_max=9) as client:
                server.fault = lambda _s, frame: "ignore" if frame["t"] == "send" else None
                with pytest.raises(TimeoutError):
                    client.send("bob", "perhaps", timeout_s=0.05)
                sendings = [client.submit("bob", f"{n}") for n in range(8)]
                with pytest.raises(OutboxFull):
                    client.submit("bob", "full")
                with pytest.raises(TimeoutError):
                    sendings[0].result(timeout_s=0.01)
                assert sendings[-1].cancel()
                with pytest.raises(Withdrawn):
                    sendings[-1].result()
                client.close(drain=False)
                assert [item["body"] for item in client.state()["outbox"]] == ["perhaps", *"0123456"]

        await run(program)


async def test_the_end_can_be_waited_for_and_a_reset_is_in_the_stream() -> None:
    async with FakeChatd() as server:

        def program() -> None:
            with script(server.url) as client:
                entries = client.entries(resets=True)
                assert isinstance(next(entries), Entry)
                assert next(entries) == Reset(None, None)
                with pytest.raises(TimeoutError):
                    client.wait_ended(timeout_s=0.0)
                ready.set()
                assert client.wait_ended().reason == "replaced"

        ready = threading.Event()
        running = asyncio.create_task(run(program))
        session = await server.until_connected("me")
        server.say("bob", "me", "1")
        await until(lambda: "me" in server.conv("bob", "me").cursors)  # it was taken, and acked
        server.epoch = "epoch-2"
        session.cut()
        await until(ready.is_set)
        server.session("me").close(4004, "replaced")
        await running


PROGRAM = """
import logging, signal, sys
from chatd.client.sync import Client

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
with Client(sys.argv[1], token="me", device="script") as client:
    print("ready", flush=True)
    try:
        for entry in client.entries():
            print("got", entry.body, flush=True)
    except KeyboardInterrupt:
        print("interrupted", client.send("bob", "bye").seq, flush=True)
        raise
"""


async def test_ctrl_c_ends_the_call_that_waits_and_then_the_script() -> None:
    async with FakeChatd() as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, server.url,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(os.environ),
        )  # fmt: skip
        assert process.stdout is not None
        try:
            assert await process.stdout.readline() == b"ready\n"
            server.say("bob", "me", "1")
            assert await process.stdout.readline() == b"got 1\n"
            process.send_signal(signal.SIGINT)
            assert await process.stdout.readline() == b"interrupted 2\n"
            _, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        assert errors.decode().strip().endswith("KeyboardInterrupt")
        assert b"Task was destroyed" not in errors
        assert process.returncode in (130, -signal.SIGINT)
