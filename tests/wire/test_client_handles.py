"""A send by its handle: what it is doing, and taking it back. Sends that keep to the rate."""

from __future__ import annotations

import asyncio

import pytest

from chatd.client import MemoryStore, RequestError, Unsent, Withdrawn
from tests.fix_fake_chatd import FakeChatd, Fault, Frame, Session, make_client, next_event
from tests.until import until


async def test_a_handle_tells_where_its_message_is() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        sending = client.submit("bob", "hi")
        assert (sending.state, sending.peer) == ("queued", "bob")
        sent = await sending
        assert (sending.state, sending.error, sent.seq) == ("sent", None, 1)
        assert server.conv("bob", "me").log[0]["cid"] == sending.cid
        assert not sending.cancel(), "it is stored"
        assert (await client.submit_edit("bob", 1, "hi!")).seq == 2
        assert (await client.submit_delete("bob", 1)).seq == 3


async def test_what_waits_here_is_taken_back_and_what_may_be_stored_is_not() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.fault = lambda _s, frame: "ignore" if frame["t"] == "send" else None
        sendings = [client.submit("bob", f"{n}") for n in range(10)]  # two wait behind a window of eight
        await until(lambda: sendings[7].state == "sending")
        assert [sending.state for sending in sendings[8:]] == ["queued"] * 2
        assert not sendings[0].cancel()
        assert sendings[9].cancel()
        assert sendings[9].cancel()
        assert sendings[9].state == "withdrawn"
        with pytest.raises(Withdrawn):
            await sendings[9]
        server.fault = lambda _s, _f: None
        server.session("me").cut()
        await asyncio.gather(*sendings[:9])
        assert server.texts("bob", "me") == [f"{n}" for n in range(9)]


async def test_what_waits_is_listed_amended_and_taken_back_whoever_waits_for_it() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.fault = lambda _s, frame: "ignore" if frame["t"] == "send" else None
        sendings = [client.submit("bob", f"{n}") for n in range(10)]  # two wait behind a window of eight
        await until(lambda: sendings[7].state == "sending")
        listed = client.waiting()
        assert [(one.cid, one.kind, one.body) for one in listed] == [(one.cid, "message", one.body) for one in sendings]
        assert [one.amend(f"{n}!") for n, one in enumerate(listed)] == [False] * 8 + [True] * 2
        with pytest.raises(RequestError, match="too_long"):
            listed[8].amend("x" * 2_049)
        assert [listed[7].cancel(), listed[9].cancel()] == [False, True]
        assert [sendings[9].state, listed[9].state, listed[9].amend("too late")] == ["withdrawn", "withdrawn", False]
        with pytest.raises(Withdrawn):
            await sendings[9]
        server.fault = lambda _s, _f: None
        server.session("me").cut()
        assert [await one for one in listed[:9]] == [await one for one in sendings[:9]]
        assert server.texts("bob", "me") == [*(f"{n}" for n in range(8)), "8!"]
        assert client.waiting() == []


async def test_a_listed_handle_is_not_left_behind_when_its_owner_gives_up() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.fault = lambda _s, frame: "ignore" if frame["t"] == "send" else None
        owners = [asyncio.create_task(client.send("bob", f"{n}")) for n in range(10)]
        await until(lambda: len(client.waiting()) == 10 and client.waiting()[7].state == "sending")
        first, *_, last = client.waiting()
        for owner in owners:
            owner.cancel()
        await asyncio.gather(*owners, return_exceptions=True)
        with pytest.raises(Withdrawn):
            await last
        server.fault = lambda _s, _f: None
        server.session("me").cut()
        assert (await first).seq == 1, "it may have been stored, and goes on"


async def test_what_an_earlier_process_left_is_listed_and_its_refusal_is_heard() -> None:
    store = MemoryStore()
    async with FakeChatd() as server:
        server.fault = lambda _s, frame: "ignore" if frame["t"] == "send" else None
        earlier = make_client(server.url, store=store)
        await earlier.open()
        cids = [earlier.submit("bob", body).cid for body in ("one", "two")]
        await earlier.saved()
        await earlier.close(drain=False)
        async with make_client(server.url, store=store) as client:
            assert [(one.cid, one.body) for one in client.waiting()] == list(zip(cids, ("one", "two"), strict=True))
            one, _ = client.waiting()
            server.fault = lambda _s, frame: {"code": "refused"} if frame["t"] == "send" else None
            server.session("me").cut()
            with pytest.raises(RequestError, match="refused"):
                await one
            events = [await next_event(client) for _ in cids]
            assert [event.cid for event in events if isinstance(event, Unsent)] == cids


async def test_one_of_two_handles_of_a_message_does_not_take_it_from_the_other() -> None:
    cid = "8c1e0000-0000-4000-8000-000000000001"
    async with FakeChatd() as server, make_client(server.url) as client:
        one, two = (client.submit("bob", "hi", cid=cid) for _ in range(2))
        assert not one.cancel()
        assert await one == await two


async def test_a_handle_outlives_who_awaits_it() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.fault = lambda _s, frame: "ignore" if frame["t"] == "send" else None
        sending = client.submit("bob", "hi")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await sending
        server.fault = lambda _s, _f: None
        server.session("me").cut()
        assert (await sending).seq == 1


async def test_a_refusal_is_raised_to_who_awaits_and_an_event_for_who_does_not() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.fault = lambda _s, frame: {"code": "refused"} if frame["t"] == "send" else None
        awaited = client.submit("bob", "one")
        with pytest.raises(RequestError, match="refused"):
            await awaited
        assert awaited.state == "failed"
        dropped = client.submit("bob", "two")
        event = await next_event(client)
        assert isinstance(event, Unsent)
        assert (event.cid, event.body, event.code) == (dropped.cid, "two", "refused")
        assert isinstance(dropped.error, RequestError)


async def test_sends_keep_to_the_rate_without_being_refused() -> None:
    async with FakeChatd() as server:
        server.messages, server.per_ms = 3, 100
        loop = asyncio.get_running_loop()
        at: list[float] = []

        def fault(_session: Session, frame: Frame) -> Fault:
            if frame["t"] == "send":
                at.append(loop.time())
            return None

        server.fault = fault
        async with make_client(server.url) as client:
            await asyncio.gather(*(client.send(f"u{n % 4}", f"{n}") for n in range(10)))
        assert len(at) == 10
        # Seen from here a pair may come closer by what the first one was late
        assert all(later - earlier >= 0.09 for earlier, later in zip(at, at[3:], strict=False))
