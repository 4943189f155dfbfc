"""How a client begins, moves and ends: tokens, drain, replacement, servers that are not there,
cancellation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from chatd.client import Client, Closed, Line, Notice, NoToken, RequestError, Stopped, reconnect
from chatd.client import link as link_module
from chatd.client import session as session_module
from chatd.client.dial import Dial
from tests.fix_fake_chatd import FakeChatd, make_client, next_event
from tests.until import until


class Tokens:
    """A token callable that keeps book. `fresh`: what it gives when a new one is asked for."""

    def __init__(self, first: str, *fresh: str) -> None:
        self.current, self.fresh, self.asked = first, list(fresh), list[bool]()

    async def __call__(self, renew: bool) -> str:
        self.asked.append(renew)
        if renew:
            if not self.fresh:
                raise NoToken("sign in again")
            self.current = self.fresh.pop(0)
        return self.current


async def test_opening_waits_for_a_server_that_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeChatd() as server:
        port, url = server.port, server.url
        await server.stop()
        client = make_client(url)
        dials = 0
        dial = link_module.Link.open

        async def counted(*args: Any, **keys: Any) -> link_module.Link:
            nonlocal dials
            dials += 1
            return await dial(*args, **keys)

        monkeypatch.setattr(link_module.Link, "open", counted)
        opening = asyncio.create_task(client.open())
        await until(lambda: dials == 3)
        assert not opening.done()
        await server.listen(port)
        await opening
        assert client.connected
        await client.close()


async def test_opening_can_be_cancelled_and_leaves_nothing_behind() -> None:
    async with FakeChatd() as server:
        url = server.url
        await server.stop()
        before = asyncio.all_tasks()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), make_client(url):
                pass
        assert asyncio.all_tasks() == before
        await server.listen()


async def test_a_server_that_goes_away_for_a_while_is_found_again() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        port = server.port
        await server.stop()
        sending = asyncio.create_task(client.send("bob", "hi"))
        await until(lambda: not client.connected)
        await server.listen(port)
        assert (await sending).seq == 1


async def test_a_connection_that_has_lived_sets_the_waits_back_and_one_that_has_not_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settled = asyncio.Event()
    monkeypatch.setattr(Dial, "settled", lambda _self: settled.set())
    monkeypatch.setattr(reconnect, "SETTLED_S", 1e6)
    async with FakeChatd() as server, make_client(server.url):
        await asyncio.sleep(0)
        assert not settled.is_set()
    monkeypatch.setattr(reconnect, "SETTLED_S", 0.0)
    async with FakeChatd() as server, make_client(server.url):
        await settled.wait()


async def test_a_wrong_path_is_told_at_once() -> None:
    async def never(_ws: ServerConnection) -> None: ...

    def not_found(connection: ServerConnection, _request: object) -> Any:
        return connection.respond(404, "no\n")

    async with serve(never, "127.0.0.1", 0, process_request=not_found) as server, asyncio.timeout(10):
        with pytest.raises(Stopped) as e:
            await make_client(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/wrong").open()
        assert e.value.reason == "http_404"


async def test_a_hello_without_an_answer_is_given_up_and_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "CONNECT_S", 0.05)
    async with FakeChatd() as server:
        silent = [True]
        server.fault = lambda _s, frame: "ignore" if frame["t"] == "hello" and silent and silent.pop() else None
        async with make_client(server.url) as client:
            assert client.connected
        assert len(server.all_sessions) == 2


async def test_a_request_without_an_answer_for_long_is_taken_to_another_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "ANSWER_S", 0.04)
    async with FakeChatd() as server, make_client(server.url) as client:
        deaf = [True]
        server.fault = lambda _s, frame: "ignore" if frame["t"] == "send" and deaf and deaf.pop() else None
        assert (await client.send("bob", "hi")).seq == 1
        assert len(server.all_sessions) == 2


async def test_replaced_ends_the_client_for_good() -> None:
    async with FakeChatd() as server, make_client(server.url) as old:
        server.say("bob", "me", "1")
        conv = server.conv("bob", "me")
        await old.history("bob")  # the entry is in
        async with make_client(server.url):
            entries = old.entries()
            assert (await anext(entries)).seq == 1, "what it had comes first"
            with pytest.raises(Stopped) as e:
                await anext(entries)
            assert e.value.reason == "replaced"
            for call in (lambda: old.send("bob", "x"), lambda: old.history("bob"), lambda: _collect(old.events())):
                with pytest.raises(Stopped):
                    await call()
            assert old.state()["places"][conv.c][1] == 1
            assert len(server.all_sessions) == 2, "it did not come back"


async def test_who_waits_for_a_send_hears_of_the_end_and_the_state_keeps_it() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.fault = lambda _s, frame: "ignore" if frame["t"] == "send" else None
        sending = asyncio.create_task(client.send("bob", "hi"))
        await asyncio.sleep(0)
        server.session("me").close(4005, "too many devices")
        with pytest.raises(Stopped, match="too_many_devices"):
            await sending
        assert len(client.state()["outbox"]) == 1


@pytest.mark.parametrize("early", [True, False])
async def test_a_drain_notice_moves_the_client_when_it_was_told_to(early: bool) -> None:
    """The server closes before the time it named, or is left at that time."""
    async with FakeChatd() as server, make_client(server.url) as client:
        first = server.session("me")
        loop = asyncio.get_running_loop()
        started = loop.time()
        server.fault = lambda session, frame: (
            {"code": "unavailable", "retry_ms": 1_000} if session is first and frame["t"] == "send" else None
        )
        first.push(t="notice", kind="drain", retry_ms=100)
        assert await next_event(client) == Notice("drain", 100)
        sending = asyncio.create_task(client.send("bob", "hi"))
        listing = asyncio.create_task(client.conversations())
        server.say("bob", "me", "still delivered here")
        assert (await anext(client.entries())).body == "still delivered here"
        if early:
            first.close(1012, "restart")
        assert (await sending).seq == 2
        await listing
        assert loop.time() - started >= 0.1
        assert len(server.all_sessions) == 2
        assert not [f for f in first.requests if f["t"] in ("send", "conversations")], (
            "nothing new goes to a server that leaves"
        )


async def test_a_token_that_is_refused_is_renewed_once() -> None:
    async with FakeChatd() as server:
        server.refused_tokens["me/old"] = "token_expired"
        tokens = Tokens("me/old", "me/new")
        async with make_client(server.url, token=tokens) as client:
            assert client.user == "me"
            assert tokens.asked == [False, True]
            server.session("me").close(4002, "token_expired")
            tokens.fresh = ["me/newer"]
            server.refused_tokens["me/new"] = "token_expired"
            await client.send("bob", "hi")
            assert server.session("me").hello["token"] == "me/newer"


@pytest.mark.parametrize(("token", "reason"), [
    ("me/bad", "unauthorized"), (lambda _renew: "me/bad", "unauthorized"), (Tokens("me/bad"), "no_token"),
])  # fmt: skip
async def test_without_a_good_token_it_stops(token: str | Callable[[bool], str | Awaitable[str]], reason: str) -> None:
    async with FakeChatd() as server:
        server.refused_tokens["me/bad"] = "unauthorized"
        with pytest.raises(Stopped) as e:
            await make_client(server.url, token=token).open()
        assert e.value.reason == reason


async def test_a_token_that_cannot_be_had_just_now_is_asked_for_again() -> None:
    failures = [OSError("the token server is down"), ValueError("odd")]

    def token(_renew: bool) -> str:
        if failures:
            raise failures.pop()
        return "me"

    async with FakeChatd() as server, make_client(server.url, token=token) as client:
        assert client.user == "me"


async def test_a_token_is_refreshed_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "REFRESH_LEAST_S", 0.01)
    async with FakeChatd() as server:
        server.token_ms = 60
        tokens = Tokens("me/1", "me/2", "me/3", "me/4", *["me/x"] * 50)
        server.refused_tokens["me/3"] = "unauthorized"  # one refresh fails, and is tried again
        async with make_client(server.url, token=tokens):
            await until(lambda: sum(f["t"] == "refresh" for f in server.session("me").requests) >= 4)
        assert [f["token"] for f in server.all_sessions[0].requests if f["t"] == "refresh"][:4] == [
            "me/2",
            "me/3",
            "me/4",
            "me/x",
        ]
        assert len(server.all_sessions) == 1


async def test_a_refresh_gives_the_server_a_new_token_on_the_same_connection() -> None:
    async with FakeChatd() as server, make_client(server.url, token=Tokens("me/1", "me/2", "me/3")) as client:
        await client.refresh()
        server.refused_tokens["me/3"] = "unauthorized"
        with pytest.raises(RequestError, match="unauthorized"):
            await client.refresh()
        assert [f["token"] for f in server.session("me").requests if f["t"] == "refresh"] == ["me/2", "me/3"]
        assert len(server.all_sessions) == 1
    async with FakeChatd() as server, make_client(server.url) as client:
        with pytest.raises(RuntimeError, match="callable"):
            await client.refresh()


async def test_a_state_of_another_user_is_refused() -> None:
    async with FakeChatd() as server:
        async with make_client(server.url) as client:
            state = client.state()
        with pytest.raises(Stopped, match="the token is of you, the state of me"):
            await make_client(server.url, token="you", state=state).open()
        with pytest.raises(ValueError, match="no state of a client"):
            make_client(server.url, state={"version": 1})
        with pytest.raises(ValueError, match="version 99"):
            make_client(server.url, state={"version": 99})


async def test_closing_ends_every_wait_and_leaves_no_task() -> None:
    async with FakeChatd() as server:
        before = asyncio.all_tasks()
        client = make_client(server.url)
        await client.open()
        server.fault = lambda _s, frame: "ignore" if frame["t"] == "history" else None
        entries = asyncio.create_task(_collect(client.entries()))
        events = asyncio.create_task(_collect(client.events()))
        history = asyncio.create_task(client.history("bob"))
        await asyncio.sleep(0)
        await client.close()
        assert await entries == []
        assert all(isinstance(event, Line) for event in await events)
        with pytest.raises(Closed):
            await history
        await client.close()
        await until(lambda: not server.sessions)
        # The server's own tasks end with its side of the connection.
        assert {task.get_name() for task in asyncio.all_tasks() - before if "chatd" in task.get_name()} == set()
        with pytest.raises(RuntimeError, match="lives once"):
            await client.open()


async def _collect(stream: Any) -> list[object]:
    return [x async for x in stream]


async def test_away_holds_over_reconnects() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        await client.set_away(True)
        first = server.session("me")
        assert first.requests[-1]["state"] == "away"
        first.cut()
        assert (await server.until_connected("me", first)).hello["state"] == "away"
        await client.set_away(False)  # the welcome is not in yet
        assert not client.connected
        await client.conversations()
        assert [f["state"] for f in server.session("me").requests if f["t"] == "presence"] == ["online"]


async def test_a_failure_of_the_client_itself_is_loud(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("seeded")

    async with FakeChatd() as server, make_client(server.url) as client:
        monkeypatch.setattr(client._desk.inbox, "push", broken)
        server.say("bob", "me", "1")
        with pytest.raises(Stopped, match="ZeroDivisionError"):
            await anext(client.entries())
        assert "please report this" in caplog.text


async def test_each_change_of_the_line_is_told_from_the_first_try_on_whatever_the_listener_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[str] = []

    def on_line(line: Line) -> None:
        told.append(line.state)
        raise ZeroDivisionError

    async with FakeChatd() as server, Client(server.url, token="me", device="d1", on_line=on_line):
        assert told == ["connecting", "online"]
    assert told[-1] == "stopped"
    assert "on_line failed" in caplog.text
