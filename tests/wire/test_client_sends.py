"""Sends over a line that is cut at every step: once in the log, in order, and never called failed
while nobody knows.
"""

from __future__ import annotations

import asyncio
import uuid

import pytest

from chatd.client import Closed, EpochChanged, OutboxFull, RequestError, Sent, Unsent
from tests.fix_fake_chatd import FakeChatd, Fault, Frame, Session, make_client
from tests.until import until


class Plan:
    """The faults that the next requests of a type meet, one after the other; then all is well."""

    def __init__(self, t: str, *faults: Fault) -> None:
        self.t, self.faults = t, list(faults)
        self.met: list[Frame] = []

    def __call__(self, _session: Session, frame: Frame) -> Fault:
        if frame["t"] != self.t:
            return None
        self.met.append(frame)
        return self.faults.pop(0) if self.faults else None


async def test_a_send_returns_its_place() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        sent = await client.send("bob", "hi")
        assert sent == Sent(server.conv("me", "bob").c, 1, sent.ts)
        assert (await client.edit("bob", 1, "hi!")).seq == 2
        assert (await client.delete("bob", 1)).seq == 3
        assert [e["kind"] for e in server.conv("me", "bob").log] == ["message", "edit", "delete"]
        assert client.user == "me"


@pytest.mark.parametrize("fault", ["cut", "cut after", "ignore"])
async def test_a_send_survives_a_cut_at_each_step(fault: Fault) -> None:
    """Cut before it was stored, cut after it was stored and before its ok, and an answer that never
    comes with the line cut later.
    """
    async with FakeChatd() as server, make_client(server.url) as client:
        server.fault = plan = Plan("send", fault)
        sending = asyncio.create_task(client.send("bob", "hi"))
        if fault == "ignore":
            await until(lambda: plan.met)
            server.session("me").cut()
        sent = await sending
        assert sent.dup is (fault == "cut after")
        assert server.texts("me", "bob") == ["hi"]
        assert len({frame["cid"] for frame in plan.met}) == 1
        assert [frame.get("retry", False) for frame in plan.met] == [False, True]


async def test_many_sends_over_many_cuts_stand_once_and_in_order() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        faults: list[Fault] = ["cut after", None, "cut", None, None, "cut after", "cut", None, "cut after"] * 3
        server.fault = Plan("send", *faults)
        texts = [f"{n}" for n in range(30)]
        sent = await asyncio.gather(*(client.send("bob", text) for text in texts))
        assert server.texts("me", "bob") == texts
        assert [s.seq for s in sent] == list(range(1, 31))


async def test_a_message_that_was_stored_settles_by_its_own_entry() -> None:
    """The retry is never answered; the resync alone must do."""
    async with FakeChatd() as server, make_client(server.url) as client:
        await client.send("bob", "before")
        server.fault = Plan("send", "cut after", "ignore")
        assert await client.send("bob", "hi") == Sent(
            server.conv("me", "bob").c, 2, server.conv("me", "bob").log[1]["ts"], True
        )


async def test_rate_limited_waits_and_keeps_the_order() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.fault = plan = Plan("send", None, {"code": "rate_limited", "retry_ms": 30})
        loop = asyncio.get_running_loop()
        started = loop.time()
        texts = [f"{n}" for n in range(12)]
        await asyncio.gather(*(client.send("bob", text) for text in texts))
        assert loop.time() - started >= 0.03
        assert server.texts("me", "bob") == texts
        assert len(server.all_sessions) == 1
        # The first window of 8; then the refused one alone, before any other.
        assert [frame["body"] for frame in plan.met][8:9] == ["1"]


async def test_unavailable_may_mean_stored_and_is_asked_again() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:

        def stores_and_says_unavailable(session: Session, frame: Frame) -> Fault:
            if frame["t"] == "send" and not frame.get("retry"):
                server.add(server.conv("me", "bob"), "me", "message", frame["cid"], session, body=frame["body"])
                return {"code": "unavailable", "retry_ms": 10}
            return None

        server.fault = stores_and_says_unavailable
        assert (await client.send("bob", "hi")).dup
        assert server.texts("me", "bob") == ["hi"]


async def test_a_block_by_a_cid_that_is_not_ours_is_given_up() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        await client.send("bob", "first")
        server.session("me").blocked[server.conv("me", "bob").c] = "of-somebody-else"
        await client.send("bob", "second")
        assert [frame["cid"] for frame in server.session("me").requests if frame["t"] == "skip"] == ["of-somebody-else"]


async def test_a_refusal_for_good_is_raised_and_the_next_goes_on() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.fault = Plan("send", {"code": "refused"})
        bad, good = asyncio.create_task(client.send("bob", "bad")), asyncio.create_task(client.send("bob", "good"))
        with pytest.raises(RequestError, match="refused"):
            await bad
        await good
        assert server.texts("me", "bob") == ["good"]


async def test_what_no_frame_can_hold_is_refused_without_asking() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        for peer, body, code in (
            ("bob", "x" * 2049, "too_long"),
            ("bob", "\udc00", "bad_text"),
            (" ", "x", "bad_field"),
        ):
            with pytest.raises(RequestError) as e:
                await client.send(peer, body)
            assert e.value.code == code
        assert {frame["t"] for frame in server.session("me").requests} == {"hello"}


async def test_cancelling_takes_back_what_was_surely_not_stored() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.fault = plan = Plan("send", {"code": "overloaded", "retry_ms": 60_000})
        sending = asyncio.create_task(client.send("bob", "taken back"))
        await until(lambda: plan.met)
        await client.conversations()  # its answer comes behind the refusal
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert client.state()["outbox"] == []
        await client.send("bob", "next")
        assert server.texts("me", "bob") == ["next"]
        assert [frame["cid"] for frame in server.session("me").requests if frame["t"] == "skip"] == [plan.met[0]["cid"]]


async def test_cancelling_does_not_take_back_what_may_be_stored() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.fault = plan = Plan("send", "ignore")
        sending = asyncio.create_task(client.send("bob", "perhaps"))
        await until(lambda: plan.met)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert [item["body"] for item in client.state()["outbox"]] == ["perhaps"]
        server.session("me").cut()
        await client.send("bob", "next")
        assert server.texts("me", "bob") == ["perhaps", "next"]


async def test_a_refusal_that_nobody_waits_for_is_an_event() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        server.fault = plan = Plan("send", "ignore", {"code": "refused"})
        sending = asyncio.create_task(client.send("bob", "perhaps"))
        await until(lambda: plan.met)
        sending.cancel()
        server.session("me").cut()
        async for event in client.events():
            if isinstance(event, Unsent):
                assert (event.peer, event.body, event.code) == ("bob", "perhaps", "refused")
                break


async def test_ones_own_cid_is_done_once_by_any_process() -> None:
    cid = str(uuid.uuid4())
    async with FakeChatd() as server:
        async with make_client(server.url) as client:
            first, again = await asyncio.gather(
                client.send("bob", "hi", cid=cid), client.send("bob", "hi", cid=cid.upper())
            )
            assert first == again
        async with make_client(server.url) as client:
            assert await client.send("bob", "hi", cid=cid) == Sent(first.c, first.seq, first.ts, True)
        assert server.texts("me", "bob") == ["hi"]


async def test_one_who_gives_up_does_not_take_another_ones_answer_along() -> None:
    cid = str(uuid.uuid4())
    async with FakeChatd() as server, make_client(server.url) as client:
        server.fault = plan = Plan("send", "ignore")
        one, two = (asyncio.create_task(client.send("bob", "hi", cid=cid)) for _ in range(2))
        await until(lambda: plan.met)
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        server.session("me").cut()
        assert (await two).seq == 1


async def test_closing_sends_what_waits_and_then_nothing_more() -> None:
    async with FakeChatd() as server:
        async with make_client(server.url) as client:
            sends = [asyncio.create_task(client.send("bob", f"{n}")) for n in range(20)]
            await asyncio.sleep(0)
        assert [(await s).seq for s in sends] == list(range(1, 21))
        with pytest.raises(Closed):
            await client.send("bob", "late")


async def test_closing_without_draining_keeps_the_rest_for_the_next_process() -> None:
    async with FakeChatd() as server:
        server.fault = plan = Plan("send", "ignore")
        client = make_client(server.url)
        await client.open()
        sending = asyncio.create_task(client.send("bob", "hi"))
        await until(lambda: plan.met)
        await client.close(drain=False)
        with pytest.raises(Closed):
            await sending
        async with make_client(server.url, state=client.state()):
            pass
        assert server.texts("me", "bob") == ["hi"]
        assert plan.met[-1]["retry"] is True
        assert plan.met[0]["cid"] == plan.met[-1]["cid"]


async def test_a_drain_that_takes_too_long_is_given_up() -> None:
    async with FakeChatd() as server:
        server.fault = Plan("send", "ignore")
        client = make_client(server.url)
        await client.open()
        sending = asyncio.create_task(client.send("bob", "hi"))
        await asyncio.sleep(0)
        await client.close(drain_s=0.05)
        with pytest.raises(Closed):
            await sending
        assert len(client.state()["outbox"]) == 1


async def test_a_full_outbox_says_so() -> None:
    async with FakeChatd() as server, make_client(server.url, outbox_max=1) as client:
        server.fault = plan = Plan("send", "ignore")
        sending = asyncio.create_task(client.send("bob", "one"))
        await until(lambda: plan.met)
        with pytest.raises(OutboxFull):
            await client.send("bob", "two")
        server.session("me").cut()
        await sending


async def test_on_another_epoch_an_edit_finds_its_message_by_its_cid_and_never_another_one() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        await client.send("bob", "one")
        await client.send("bob", "two")
        frames: list[Frame] = []

        def restore(session: Session, frame: Frame) -> Fault:
            if frame["t"] != "edit":
                return None
            frames.append(frame)
            server.epoch = "epoch-2"
            log = server.conv("me", "bob").log
            del log[0]  # the restored log lacks the first: now the second stands in its place
            log[0]["seq"] = 1
            server.fault = lambda _s, f: frames.append(f) if f["t"] == "edit" else None
            return "cut"

        server.fault = restore
        first, second = (
            asyncio.create_task(client.edit("bob", 1, "one!")),
            asyncio.create_task(client.edit("bob", 2, "two!")),
        )
        with pytest.raises(EpochChanged):
            await first
        assert (await second).seq == 2
        assert all(("ref" in frame) == (frame is frames[0]) for frame in frames[:1])
        assert all("ref" not in frame and frame["retry"] is True for frame in frames[-2:])
        edit = server.conv("me", "bob").log[-1]
        assert (edit["kind"], edit["ref"], edit["body"]) == ("edit", 1, "two!")


async def test_another_epoch_keeps_sends_and_gives_up_edits() -> None:
    async with FakeChatd() as server, make_client(server.url) as client:
        await client.send("bob", "one")

        def restore(session: Session, frame: Frame) -> Fault:
            if frame["t"] != "edit":
                return None
            server.epoch = "epoch-2"
            server.conv("me", "bob").log.clear()
            server.fault = lambda _s, _f: None
            return "cut"

        server.fault = restore
        edit, send = asyncio.create_task(client.edit("bob", 1, "x")), asyncio.create_task(client.send("bob", "two"))
        with pytest.raises(EpochChanged):
            await edit
        assert (await send).seq == 1
        assert server.texts("me", "bob") == ["two"]
