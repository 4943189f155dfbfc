"""A store that the client drives: loaded at the start, saved after each entry handled and at the
end; a restart loses and doubles nothing.
"""

from __future__ import annotations

import asyncio
import json
import random
import stat
from pathlib import Path

import pytest

from chatd.client import Client, Entry, FileStore, MemoryStore, OutboxFull, State, StoreInUse
from chatd.client.store import StateKeeper
from tests.fix_fake_chatd import FakeChatd, make_client
from tests.until import until


async def take(client: Client, count: int) -> list[Entry]:
    entries = client.entries()
    return [await anext(entries) for _ in range(count)]


async def end(client: Client) -> None:
    """As the death of its process: nothing is saved any more."""
    assert client._keeper is not None
    client._keeper._store = MemoryStore()
    await client.close(drain=False)


async def test_what_was_handled_does_not_come_again_and_what_was_in_hand_does() -> None:
    store = MemoryStore()
    async with FakeChatd() as server:
        client = make_client(server.url, store=store)
        await client.open()
        server.say("bob", "me", "1", "2", "3")
        await take(client, 2)  # the second is in hand
        await end(client)
        client = make_client(server.url, store=store)
        await client.open()
        assert [e.body for e in await take(client, 2)] == ["2", "3"]
        await end(client)


async def test_what_came_before_the_first_save_is_not_lost() -> None:
    """The state is saved at the first welcome, before anything is handled."""
    store = MemoryStore()
    async with FakeChatd() as server:
        client = make_client(server.url, store=store)
        await client.open()
        await client.saved()
        await end(client)
        server.say("bob", "me", "1")
        async with make_client(server.url, store=store) as client:
            assert [e.body for e in await take(client, 1)] == ["1"]


async def test_a_loop_left_in_good_order_has_handled_its_last_entry() -> None:
    store = MemoryStore()
    async with FakeChatd() as server:
        async with make_client(server.url, store=store) as client:
            server.say("bob", "me", "1", "2")
            async for _ in client.entries():
                break

        async def fail() -> None:
            async with make_client(server.url, store=store) as client:
                async for entry in client.entries():
                    assert entry.body == "2"
                    raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        async with make_client(server.url, store=store) as client:
            assert [e.body for e in await take(client, 1)] == ["2"], "its handler failed"


async def test_handlers_side_by_side_end_in_any_order_and_a_restart_goes_on_before_the_first_open_one() -> None:
    store = MemoryStore()
    async with FakeChatd() as server:
        client = make_client(server.url, store=store)
        await client.open()
        server.say("bob", "me", *"123456")
        entries = client.entries(auto_done=False)
        given = [await anext(entries) for _ in range(5)]
        for n in (0, 1, 3, 4):
            given[n].done()
        assert [e.body for e in given] == [*"12345"]
        await client.saved()
        await end(client)
        async with make_client(server.url, store=store) as client:
            again = client.entries(auto_done=False)
            assert [(await anext(again)).body for _ in range(4)] == [*"3456"]
            assert client.state()["places"][given[0].c][1] == 2, "none of them is done"


async def test_the_outbox_outlives_the_process() -> None:
    store = MemoryStore()
    async with FakeChatd() as server:
        server.fault = lambda _s, f: "ignore" if f["t"] == "send" else None
        client = make_client(server.url, store=store)
        await client.open()
        sending = client.submit("bob", "hi")
        await client.saved()
        await end(client)
        assert sending.state == "sending"
        server.fault = lambda _s, _f: None
        async with make_client(server.url, store=store):
            pass
        assert server.texts("bob", "me") == ["hi"]
        assert store.state is not None
        assert store.state["outbox"] == []


@pytest.mark.parametrize("seed", range(4))
async def test_a_bot_that_dies_at_any_step_answers_each_question_once(seed: int, tmp_path: Path) -> None:
    """Its process dies at times of the seed: before and after its answer, and in a save."""
    rng, lives = random.Random(seed), 12
    path = tmp_path / "state.json"
    async with FakeChatd() as server:
        first = make_client(server.url, store=FileStore(path))
        await first.open()
        await first.close()
        for life in range(lives):
            store = FileStore(path)
            client = make_client(server.url, store=store)
            await client.open()
            server.say("bob", "me", *(f"{life}.{n}" for n in range(3)))
            steps = rng.randrange(6) if life < lives - 1 else 99
            async for entry in client.entries():
                if entry.own:
                    continue
                if steps == 0:
                    break
                await entry.reply(f"re {entry.body}, in life {life}")
                if steps == 1:
                    break
                steps -= 2 if steps < 90 else 0
                if entry.body == f"{lives - 1}.2":
                    break
            await end(client)
            store.close()
        log = server.conv("bob", "me").log
        questions = [e["body"] for e in log if e["from"] == "bob"]
        answers = [e["body"].removeprefix("re ").split(",")[0] for e in log if e["from"] == "me"]
        assert sorted(answers) == sorted(questions)


class Failing(MemoryStore):
    broken = False

    def save(self, state: State) -> None:
        if self.broken:
            raise OSError("seeded: the disk is full")
        super().save(state)


async def test_a_store_that_cannot_save_is_told_to_who_asks_for_the_next_entry() -> None:
    store = Failing()
    async with FakeChatd() as server:
        client = make_client(server.url, store=store)
        await client.open()
        server.say("bob", "me", "1", "2")
        entries = client.entries()
        await anext(entries)
        await client.saved()
        store.broken = True
        with pytest.raises(OSError, match="disk is full"):
            await anext(entries)
        store.broken = False
        assert (await anext(entries)).body == "2", "nothing is lost"
        store.broken = True
        client._desk.on_change()
        with pytest.raises(OSError, match="disk is full"):
            await client.close()


async def test_a_close_that_is_cancelled_while_it_drains_ends_the_client_and_saves() -> None:
    async with FakeChatd() as server:
        store = MemoryStore()
        client = make_client(server.url, store=store)
        await client.open()
        server.fault = lambda _session, frame: "ignore" if frame["t"] == "send" else None
        client.submit("bob", "unanswered")
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert client.line.state == "stopped"
        assert store.state is not None
        assert [item["body"] for item in store.state["outbox"]] == ["unanswered"]
        assert not server.sessions


async def test_a_store_of_coroutines_does_too_and_is_closed() -> None:
    class Slow:
        kept: State | None = None
        saving = closed = False

        async def load(self) -> State | None:
            await asyncio.sleep(0)
            return self.kept

        async def save(self, state: State) -> None:
            assert not self.saving, "one save at a time"
            self.saving = True
            await asyncio.sleep(0)
            self.kept, self.saving = state, False

        async def close(self) -> None:
            self.closed = True

    store = Slow()
    async with FakeChatd() as server:
        async with make_client(server.url, store=store) as client:
            server.say("bob", "me", "1", "2", "3")
            await take(client, 3)
        assert store.closed
        assert store.kept is not None
        async with make_client(server.url, store=store) as client:
            server.say("bob", "me", "4")
            assert [e.body for e in await take(client, 1)] == ["4"]


def test_a_state_and_a_store_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="a state or a store"):
        make_client("ws://h/ws", state={"version": 1}, store=MemoryStore())


# ---- the file ---------------------------------------------------------------------------------------


async def test_a_file_is_replaced_as_a_whole_and_is_its_owners(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "state.json")
    assert store.load() is None
    await store.save({"a": 1})
    await store.save({"a": 2})
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.json", "state.json.lock"]
    assert store.load() == {"a": 2}
    with pytest.raises(StoreInUse):
        FileStore(store.path).load()
    store.close()
    store.close()
    again = FileStore(store.path)
    assert again.load() == {"a": 2}
    again.close()


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"'])
def test_a_file_that_holds_no_state_is_refused_and_kept(text: str, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    store = FileStore(path)
    with pytest.raises(ValueError, match="holds no state of a client"):
        store.load()
    store.close()
    assert path.read_text() == text


async def test_a_state_of_a_later_version_ends_the_open_and_lets_the_file_go(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"version": 99}))
    async with FakeChatd() as server:
        with pytest.raises(ValueError, match="version 99"):
            await make_client(server.url, store=FileStore(path)).open()
        FileStore(path).load()
        assert json.loads(path.read_text()) == {"version": 99}


async def test_a_save_that_fails_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path / "state.json")
    await store.save({"a": 1})

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        await store.save({"a": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
    assert store.load() == {"a": 1}


# ---- the keeper -------------------------------------------------------------------------------------


async def test_many_changes_are_one_save_and_none_is_left_out() -> None:
    saves: list[State] = []
    now = {"n": 0}

    class Counting(MemoryStore):
        def save(self, state: State) -> None:
            saves.append(state)

    keeper = StateKeeper(Counting(), lambda: dict(now))
    await keeper.start()
    for n in range(1, 100):
        now["n"] = n
        keeper.changed()
    await keeper.saved()
    assert saves == [{"n": 99}]
    await keeper.saved()
    now["n"] = 100
    keeper.changed()
    await until(lambda: len(saves) == 2)  # by itself
    now["n"] = 101
    keeper.changed()
    await keeper.stop()
    await keeper.stop()
    assert saves == [{"n": 99}, {"n": 100}, {"n": 101}]


async def test_room_can_be_waited_for() -> None:
    async with FakeChatd() as server, make_client(server.url, outbox_max=2) as client:
        server.fault = lambda _s, f: "ignore" if f["t"] == "send" else None
        sendings = [client.submit("bob", "1"), client.submit("bob", "2")]
        with pytest.raises(OutboxFull):
            client.submit("bob", "3")
        waiting = asyncio.create_task(client.room())
        await client.conversations()
        assert not waiting.done()
        server.fault = lambda _s, _f: None
        server.session("me").cut()
        await waiting
        await asyncio.gather(*sendings, client.submit("bob", "3"))
        assert server.texts("bob", "me") == ["1", "2", "3"]
