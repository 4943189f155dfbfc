"""Clients over a real failover to a standby that lags: nobody sees a message twice, nobody misses
one, nobody is stuck, and cursors are right.

One failover of one node, and three scenes on it: Python clients (chatd.client), the TypeScript SDK as the
page has it (clients/js, under Node), and devices that speak the bare protocol and look at their cursors. Each
scene does something that both servers have (`before`), something that is lost with the primary
(`lose`), something while there is no primary (`meanwhile`), and says what must be in the end
(`after`).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pytest

from chatd.client import Client, Entry, EpochChanged, Reset, Sent
from tests.client import Frame, Peer
from tests.faults.crowd import read_log
from tests.fix_failover import Pair
from tests.fix_server import MakeServer, Server
from tests.js.test_gates import MISSING, build
from tests.until import until

WAIT_S = 30.0
LIVE = Path(__file__).with_name("live.mjs")


@asynccontextmanager
async def within(claim: str, facts: Callable[[], str]) -> AsyncIterator[None]:
    """A bound for what is waited for.

    Past it the test fails with what it waited for, and with how things stand there.
    """
    try:
        async with asyncio.timeout(WAIT_S):
            yield
    except TimeoutError:
        raise AssertionError(f"not within {WAIT_S:.0f} s: {claim}\n{facts()}") from None


class App:
    """A Python client and its app, which takes all that comes while `takes` is set, and connects
    while `dials` is. `shown`: (epoch, entry).
    """

    def __init__(self, server: Server, user: str) -> None:
        self.user = user
        self.client = Client(server.url, token=self._token, device=f"{user}-1", rng=random.Random(user))
        self.dials = asyncio.Event()
        self.dials.set()
        self._its_token = server.token(user)
        self.shown: list[tuple[str | None, Entry]] = []
        self.resets: list[Reset] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[App]:
        async with self.client:
            both = [asyncio.create_task(self._take()), asyncio.create_task(self._hear())]
            try:
                yield self
            finally:
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)

    async def _token(self, _renew: bool) -> str:
        await self.dials.wait()
        return self._its_token

    async def _take(self) -> None:
        entries = self.client.entries()
        while True:
            await self.takes.wait()
            entry = await anext(entries)
            self.shown.append((self.client.epoch, entry))
            self._changed.set()

    async def _hear(self) -> None:
        async for event in self.client.events():
            if isinstance(event, Reset):
                self.resets.append(event)
                self._changed.set()

    def facts(self) -> str:
        """How things stand here, for whoever waited in vain."""
        client = self.client
        lines = [
            f"{self.user}: connected={client.connected} epoch={client.epoch}",
            f"  takes {self.takes.is_set()}, dials {self.dials.is_set()}",
        ]
        lines += [f"  resets {self.resets}", f"  state {client.state()}", "  shown:"]
        lines += [
            f"    {e.peer} {e.seq} at {e.ts} {e.kind} own={e.own} ref={e.ref} rev={e.rev} {e.body!r}, of {epoch}"
            for epoch, e in self.shown
        ]
        return "\n".join(lines)

    async def until(self, claim: str, holds: Callable[[], bool]) -> None:
        await until(holds, lambda: f"{self.user} {claim}\n{self.facts()}", changed=self._changed)

    def bodies(self, peer: str) -> list[str | None]:
        return [entry.body for _, entry in self.shown if entry.peer == peer]

    async def until_shown(self, peer: str, body: str) -> None:
        await self.until(f"is shown {body!r} of {peer}", lambda: body in self.bodies(peer))

    async def until_told(self) -> None:
        """That the log is another one."""
        await self.until("is told of another log", lambda: Reset(None, None) in self.resets)

    async def until_all(self, peer: str, count: int) -> None:
        await self.until(f"is shown {count} entries of the log with {peer}", lambda: len(as_shown(self, peer)) >= count)

    async def says(self, peer: str, *bodies: str) -> list[Sent]:
        return list(await asyncio.gather(*(self.client.send(peer, body) for body in bodies)))


class Page:
    """The SDK of the page under Node, and how things stand there."""

    def __init__(self, user: str, process: asyncio.subprocess.Process) -> None:
        self.user = user
        self._process = process
        self.facts: dict[str, Any] = {}

    @classmethod
    async def open(cls, server: Server, user: str, peer: str) -> Page:
        pipe = asyncio.subprocess.PIPE
        command = ["node", str(LIVE), server.url, server.token(user), f"{user}-1", user, peer]
        return cls(user, await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=1 << 24))

    def say(self, *bodies: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{body}\n" for body in bodies).encode())

    async def until(self, claim: str, holds: Callable[[dict[str, Any]], bool]) -> None:
        assert self._process.stdout is not None
        async with within(f"{self.user}'s page {claim}", lambda: f"there: {self.facts}"):
            while not (self.facts and holds(self.facts)):
                line = await self._process.stdout.readline()
                assert line, (
                    f"{self.user}'s page has ended, and was to be seen that it {claim}; the last there: {self.facts}"
                )
                self.facts = json.loads(line)

    async def until_shown(self, bodies: list[str]) -> None:
        await self.until(f"shows {bodies}", lambda _: self.bodies() == bodies)

    async def until_all(self, bodies: list[str]) -> None:
        await self.until(
            f"shows {bodies} and has sent all", lambda facts: sorted(self.bodies()) == bodies and not facts["unsent"]
        )

    def bodies(self) -> list[str]:
        return [body for _, _, _, body in self.facts["shown"]]

    async def close(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


Row: TypeAlias = tuple[int, int, str, str | None]  # seq, time, sender, body


def logs(pair: Pair) -> dict[frozenset[str], list[Row]]:
    """By its two users: what the new primary has."""
    log, who = read_log(pair.primary.url)
    return {frozenset(who[c]): [(e.seq, e.ts, e.sender, e.body) for e in entries] for c, entries in log.items()}


def as_shown(app: App, peer: str) -> list[Row]:
    """What stays of what the app was given, if it goes by `Reset`: where the new log begins anew,
    what it was given from there on is void.
    """
    kept: dict[int, Entry] = {}
    for _, entry in app.shown:
        if entry.peer == peer:
            kept = {seq: one for seq, one in kept.items() if seq < entry.seq} | {entry.seq: entry}
    return [(e.seq, e.ts, app.user if e.own else peer, e.body) for e in kept.values()]


class Scene(Protocol):
    """What goes on around the failover."""

    async def before(self) -> None: ...

    async def lose(self) -> None: ...

    async def meanwhile(self) -> None: ...

    async def after(self, pair: Pair) -> None: ...


class PythonApps:
    """Conversations of ann and ben, who lost some; cat and dan, whose app is slow; eve and fay,
    begun in the lost part; ben and fay, after it.

    And of ann and gus, who lost nothing, and who is back late: what he has was edited by then.
    """

    def __init__(self, *apps: App) -> None:
        self.ann, self.ben, self.cat, self.dan, self.eve, self.fay, self.gus = self.apps = apps

    async def before(self) -> None:
        self.kept = (await self.ann.says("ben", "1", "2"))[0]
        self.of_gus = (await self.ann.says("gus", "1"))[0]
        await self.cat.says("dan", "1")
        await self.dan.until_shown("cat", "1")
        self.dan.takes.clear()
        await self.cat.says("dan", "2", "3")  # one is taken still, the other waits in the client
        await self.ben.until_shown("ann", "2")
        await self.gus.until_shown("ann", "1")
        await self.dan.until_shown("cat", "2")

    async def lose(self) -> None:
        self.lost = (await self.ann.says("ben", "lost 1", "lost 2"))[0]
        await self.eve.says("fay", "lost")
        await self.cat.says("dan", "lost")
        await self.ben.until_shown("ann", "lost 2")
        await self.fay.until_shown("eve", "lost")

    async def meanwhile(self) -> None:
        self.gus.dials.clear()
        sends = (
            self.ann.says("ben", "after 1", "after 2", "after 3"),
            self.eve.says("fay", "after"),
            self.cat.says("dan", "after"),
            self.ben.says("fay", "new"),
            self.ann.client.edit("gus", self.of_gus.seq, "edited"),
            self.ann.client.edit("ben", self.kept.seq, "edited"),
        )
        self.waiting = asyncio.gather(*sends)
        self.gone = asyncio.create_task(self.ann.client.edit("ben", self.lost.seq, "of what is lost"))

    async def after(self, pair: Pair) -> None:
        async with within("what was said has its answers", self.facts):
            after, *_, edited = await self.waiting
            with pytest.raises(EpochChanged):
                await self.gone
        assert sorted((edited.seq, *(sent.seq for sent in after))) == [3, 4, 5, 6]
        # What waits in the client is of the log before: whoever takes it before that has it
        await self.dan.until_told()
        self.dan.takes.set()
        self.gus.dials.set()
        shown = (
            (self.ben, "ann", "edited"),
            (self.fay, "eve", "after"),
            (self.dan, "cat", "after"),
            (self.fay, "ben", "new"),
            (self.gus, "ann", "edited"),
        )
        for app, peer, body in shown:
            await app.until_shown(peer, body)
        for app in self.apps:
            await app.until_told()
            assert app.client.state()["outbox"] == []
        await self.are_right(logs(pair))
        await self.reads_on()

    def facts(self) -> str:
        return "\n".join(app.facts() for app in self.apps)

    async def are_right(self, new: dict[frozenset[str], list[Row]]) -> None:
        assert not [body for log in new.values() for *_, body in log if body is not None and body.startswith("lost")]
        for users in (("ann", "ben"), ("cat", "dan"), ("eve", "fay"), ("ben", "fay"), ("ann", "gus")):
            log = new[frozenset(users)]
            for app in self.apps:
                if app.user in users:
                    (peer,) = set(users) - {app.user}
                    await app.until_all(peer, len(log))
                    assert [row[:3] for row in as_shown(app, peer)] == [row[:3] for row in log], (
                        app.user,
                        peer,
                        app.bodies(peer),
                        log,
                    )
                    bodies = app.bodies(peer)
                    assert len(bodies) == len(set(bodies)), f"{app.user} saw a message of {peer} twice: {bodies}"
        assert [reset.peer for reset in self.ben.resets] == [None, "ann"], (
            "its log with ann has lost its end, and no other has"
        )
        for app in (self.dan, self.gus):
            assert [reset.peer for reset in app.resets] == [None], "what it had taken is there"

    async def reads_on(self) -> None:
        page = await self.ben.client.history("ann")
        assert next((e.seq, e.body) for e in page.entries) == (self.kept.seq, "edited")
        await self.ben.client.read("ann", page.head)

        async def has_read() -> bool:
            listing = await self.ben.client.conversations()
            return not {item.peer: item for item in listing.items}["ann"].unread

        await until(has_read, lambda: f"ben has read all of ann's\n{self.ben.facts()}", pause_s=0.02)


class Pages:
    """Two pages, on which ida and jon show their conversation."""

    def __init__(self, ida: Page, jon: Page) -> None:
        self.ida, self.jon = ida, jon

    async def before(self) -> None:
        await self.jon.until("is live", lambda facts: facts["isLive"])
        self.ida.say("1", "2")
        await self.jon.until_shown(["1", "2"])

    async def lose(self) -> None:
        self.ida.say("lost 1", "lost 2")
        await self.jon.until_shown(["1", "2", "lost 1", "lost 2"])
        await self.ida.until(
            "shows all four and has sent them", lambda facts: len(facts["shown"]) == 4 and not facts["unsent"]
        )

    async def meanwhile(self) -> None:
        self.ida.say("after 1", "after 2")
        self.jon.say("of jon")

    async def after(self, pair: Pair) -> None:
        expected = ["1", "2", "after 1", "after 2", "of jon"]
        for page in (self.ida, self.jon):
            await page.until_all(expected)
            assert (page.facts["resets"], page.facts["twice"], page.facts["failed"]) == (1, [], 0)
        log = logs(pair)[frozenset(("ida", "jon"))]
        assert [tuple(row) for row in self.ida.facts["shown"]] == [tuple(row) for row in self.jon.facts["shown"]] == log
        assert (self.ida.facts["unread"], self.jon.facts["unread"]) == (1, 4)


class Devices:
    """kim and leo write to each other; kim and mia begin in the lost part.

    Cursors stand below the standby's head, at it, and beyond it.
    """

    def __init__(self, server: Server) -> None:
        self.server = server

    async def before(self) -> None:
        self.kim, self.leo = await self.server.connect("kim"), await self.server.connect("leo")
        for n in range(1, 5):
            self.c = (await self.kim.say("leo", f"{n}"))["c"]
        assert (await self.leo.say("kim", "5"))["seq"] == 5
        await self.leo.request("ack", c=self.c, seq=4)
        await self.leo.request("read", c=self.c, seq=2)
        await self.server.node.store.flush()
        self.away = (await self.server.connect("leo", "away")).welcome

    async def lose(self) -> None:
        for n in range(6, 9):
            assert (await self.kim.say("leo", f"lost {n}"))["seq"] == n
        await self.leo.push("entry")
        assert (await self.leo.request("read", c=self.c, seq=8))["t"] == "ok"
        assert (await self.kim.request("read", c=self.c, seq=5))["t"] == "ok"
        self.gone = (await self.kim.say("mia", "lost"))["c"]
        self.mia = await self.server.connect("mia")
        assert (await self.mia.request("read", c=self.gone, seq=1))["t"] == "ok"
        await self.server.node.store.flush()
        self.late = (await self.server.connect("leo", "late")).welcome
        self.leo.pushes.clear()

    async def meanwhile(self) -> None:
        """They are gone from one another."""

    async def back(self, user: str, device: str, before: Frame) -> Peer:
        """With the mark and the cursors of the log before."""
        items = {item["c"]: item["head"] for item in before["conversations"]}
        peer = await self.server.connect(user, device, epoch=before["epoch"], since=before["since"], cursors=items)
        assert peer.welcome["epoch"] != before["epoch"]
        assert not [item for item in peer.welcome["conversations"] if "reset" in item], (
            "a cursor of another epoch is none"
        )
        await peer.quiet()
        return peer

    async def after(self, pair: Pair) -> None:
        for peer in (self.kim, self.leo, self.mia):
            assert await peer.closed() == 1012
        kim, leo = (
            await self.back("kim", "d1", self.late | {"conversations": []}),
            await self.back("leo", "d1", self.late),
        )
        (mine,), (his,) = kim.welcome["conversations"], leo.welcome["conversations"]
        assert (his["head"], his["delivered"], his["read"], his["unread"]) == (5, 4, 2, 2), (
            "what the standby had; of 3 and 4, not of his own"
        )
        assert (mine["peer_delivered"], mine["peer_read"], mine["read"], mine["unread"]) == (4, 2, 0, 1)
        for what in ("ack", "read"):
            assert (await leo.request(what, c=his["c"], seq=8))["code"] == "bad_seq"
        for n in range(6, 10):
            assert (await kim.say("leo", f"new {n}"))["seq"] == n
        while (await leo.push("entry"))["seq"] < 9:
            pass
        assert (await leo.request("read", c=his["c"], seq=7))["read"] == 7
        for device, before in (("late", self.late), ("away", self.away)):
            (item,) = (back := await self.back("leo", device, before)).welcome["conversations"]
            assert (item["head"], item["read"], item["unread"]) == (9, 7, 2), device
            entries = (await back.request("history", c=item["c"], limit=20))["entries"]
            assert [e["body"] for e in entries] == [*"12345", *(f"new {n}" for n in range(6, 10))]
        await self.a_conversation_that_is_gone(kim)
        await self.server.node.store.flush()
        beyond = (
            "SELECT count(*) FROM cursors JOIN conversations ON id = conv WHERE greatest(a_delivered, a_read,"
            " b_delivered, b_read) > head"
        )
        assert pair.primary.ask(beyond) == 0

    async def a_conversation_that_is_gone(self, kim: Peer) -> None:
        mia = await self.server.connect("mia")
        assert mia.welcome["conversations"] == []
        assert (await mia.request("read", c=self.gone, seq=1))["code"] == "no_conversation"
        assert (await kim.say("mia", "again"))["seq"] == 1
        await mia.push("entry")
        (item,) = (await mia.request("conversations"))["conversations"]
        assert (item["head"], item["read"], item["unread"]) == (1, 0, 1)


async def test_clients_over_a_failover_to_a_standby_that_lags(pair: Pair, make_server: MakeServer) -> None:
    server = await make_server(database_url=pair.url, rate_messages=1_000)
    async with AsyncExitStack() as stack:
        names = ("ann", "ben", "cat", "dan", "eve", "fay", "gus")
        scenes: list[Scene] = [
            PythonApps(*[await stack.enter_async_context(App(server, name).running()) for name in names]),
            Devices(server),
        ]
        if MISSING is None:
            await asyncio.to_thread(build)
            ida, jon = await Page.open(server, "ida", "jon"), await Page.open(server, "jon", "ida")
            for page in (ida, jon):
                stack.push_async_callback(page.close)
            scenes.append(Pages(ida, jon))
        for scene in scenes:
            await scene.before()
        await asyncio.to_thread(pair.caught_up)
        await asyncio.to_thread(pair.lag)
        for scene in scenes:
            await scene.lose()
        await asyncio.to_thread(pair.end_primary)
        for scene in scenes:
            await scene.meanwhile()
        await asyncio.to_thread(pair.promote)
        for scene in scenes:
            await scene.after(pair)
