"""Two users with several devices do anything in any order against a real server; a list of entries
says what must come of it.

The model is the log as docs/protocol.md tells it: a list whose index is the seq. After every step
each connected device must have been pushed exactly what the model says, and at the end every device
pages through all of the log and finds it as PostgreSQL and the model have it. Steps: connect (with
or without a cursor or mark, with sends racing the welcome), drop without a word, send, send and
lose the ok, retry (with another body), edit, delete, read, ack, history.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydantic import SecretStr

from chatd.config import Settings
from chatd.server import Node
from tests.client import Frame, Peer
from tests.faults.crowd import read_log
from tests.fix_server import Server
from tests.forgetful import forgetful
from tests.sweeping import sweeping

DEVICES: Final = [("alice", "desk"), ("alice", "phone"), ("bob", "desk"), ("bob", "phone")]
WHICH: Final = st.integers(0, len(DEVICES) - 1)
# What is missing after it does not come; shorter than Peer's own wait, since shrinking a failure
# waits for it often
PUSH_S: Final = 5.0
BODIES: Final = st.text("aä€😀 \n", min_size=1, max_size=8)
ENTRY_KEYS: Final = ("seq", "from", "to", "kind", "ref", "body", "rev")


@dataclass(slots=True)
class Logged:
    """A line of the model's log. `body`: a message's text as it stands now."""

    seq: int
    sender: str
    to: str
    cid: str
    kind: str
    ref: int | None = None
    body: str | None = None
    rev: int | None = None


@dataclass(slots=True)
class Device:
    user: str
    name: str
    peer: Peer | None = None
    have: int | None = None  # highest seq without holes; None: never connected
    expect: list[Frame] = field(default_factory=list)  # pushes that must have come
    unanswered: list[tuple[str, int]] = field(default_factory=list)  # cids whose ok was lost, and their seqs
    since: str | None = None
    epoch: str | None = None
    # By user: (delivered, read), of welcomes, lists, receipts and answers
    told: dict[str, tuple[int, int]] = field(default_factory=dict)


class World:
    """The server, and the loop in which it and the clients run."""

    def __init__(self, runner: asyncio.Runner, server: Server, conninfo: str, *, way: str) -> None:
        self.runner, self.server, self.conninfo = runner, server, conninfo
        self.way = way
        self.examples = 0
        self.listed, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()
        for name in ("list_changed", "swept"):
            setattr(server.node.store, name, self._held(getattr(server.node.store, name)))

    def _held(self, listing: Callable[..., Any]) -> Callable[..., Any]:
        """A hello's listing, which can be held between its snapshot and the welcome."""

        async def held(*args: Any) -> Any:
            page = await listing(*args)
            if page is not None:  # else it was no storm
                self.listed.set()
                await self.go_on.wait()
            return page

        return held

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)


class Chat(RuleBasedStateMachine):
    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.world.examples += 1
        self.names = {name: f"{name}{self.world.examples}" for name in ("alice", "bob")}
        self.devices = [Device(self.names[user], name) for user, name in DEVICES]
        self.log: list[Logged] = []
        self.c: str | None = None
        self.cursors = dict.fromkeys(self.names.values(), (0, 0))  # delivered, read
        self.dropped: list[Peer] = []
        self.stranger: Peer | None = None

    # ---- the model -------------------------------------------------------------------------------

    def other(self, user: str) -> str:
        return self.names["bob"] if user == self.names["alice"] else self.names["alice"]

    def make(self, device: Device, cid: str, kind: str, body: str | None, ref: int | None = None) -> Logged:
        """Add an entry, and what the others are to be pushed."""
        entry = Logged(
            len(self.log) + 1, device.user, self.other(device.user), cid, kind, ref, body if kind == "message" else None
        )
        self.log.append(entry)
        if ref is not None:
            message = self.log[ref - 1]
            message.body, message.rev = (body, entry.seq) if kind == "edit" else (None, entry.seq)
        live = {
            key: value for key, value in self.frame(entry, device.user, now=False, body=body).items() if key != "cid"
        }
        for one in self.devices:
            if one.peer is not None and one is not device:
                one.expect.append({**live, "cid": cid} if one.user == device.user else live)
                one.have = entry.seq
        if device.peer is not None:
            device.have = entry.seq
        return entry

    def frame(self, entry: Logged, reader: str, *, now: bool = True, body: str | None = None) -> Frame:
        """How an entry looks: live, or in resync and history as it stands now."""
        frame: Frame = {"seq": entry.seq, "from": entry.sender, "to": entry.to, "kind": entry.kind}
        if entry.kind == "message":
            frame["body"] = entry.body if now else body
            if now and entry.rev is not None:
                frame["rev"] = entry.rev
        else:
            assert entry.ref is not None
            frame["ref"] = entry.ref
            if entry.kind == "edit":
                frame["body"] = self.log[entry.ref - 1].body if now else body
        if reader == entry.sender:
            frame["cid"] = entry.cid
        return frame

    @staticmethod
    def facts(frame: Frame) -> Frame:
        return {key: frame[key] for key in (*ENTRY_KEYS, "cid") if key in frame}

    # ---- what a device does ----------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.world.run(work)

    def live(self, n: int) -> Device:
        """Device n, or the next one that is connected."""
        return next(d for k in range(len(DEVICES)) if (d := self.devices[(n + k) % len(DEVICES)]).peer is not None)

    def where(self, device: Device, by_name: bool) -> dict[str, str]:
        return {"c": self.c} if self.c is not None and not by_name else {"to": self.other(device.user)}

    @property
    def anybody(self) -> bool:
        return any(d.peer is not None for d in self.devices)

    async def request(self, device: Device, t: str, **keys: Any) -> Frame:
        assert device.peer is not None
        return await device.peer.request(t, **keys)

    def is_open(self, head: int) -> bool:
        return {e.sender for e in self.log[:head]} == set(self.names.values())

    def theirs(self, device: Device, head: int) -> tuple[int, int]:
        """The peer's cursors as this device may know them: until both have sent, nothing."""
        return self.cursors[self.other(device.user)] if self.is_open(head) else (0, 0)

    async def check(self) -> None:
        """Each connected device has been pushed what the model says, and nothing else; and knows
        all cursors that it may know.
        """
        for device in self.devices:
            if device.peer is None:
                continue
            pushes = device.peer.pushes
            while sum(p["t"] == "entry" for p in pushes) < len(device.expect):  # a resync may still be on its way
                async with asyncio.timeout(PUSH_S):
                    pushes.append(await device.peer.recv())
            assert (await device.peer.request("ping"))["t"] == "pong"
            got = [self.facts(p) for p in pushes if p["t"] == "entry"]
            assert got == device.expect, (device.user, device.name)
            for p in pushes:
                if p["t"] == "receipt":
                    told = (p["delivered"], p["read"])
                    assert device.told.get(p["from"], (0, 0)) <= told <= self.cursors[p["from"]], "they only rise"
                    assert p["from"] == device.user or self.is_open(len(self.log)), (
                        "of one who has not answered, or was not"
                    )
                    device.told[p["from"]] = told
            right = {
                device.user: self.cursors[device.user],
                self.other(device.user): self.theirs(device, len(self.log)),
            }
            assert {user: device.told.get(user, (0, 0)) for user in right} == right, (device.user, device.name)
            pushes.clear()
            device.expect.clear()

    @invariant()
    def everybody_was_pushed_the_same(self) -> None:
        self.run(self.check())

    # ---- steps -----------------------------------------------------------------------------------

    @initialize(n=WHICH)
    def somebody_comes(self, n: int) -> None:
        self.connect(n, True, True, 0, False)

    @rule(n=WHICH, mark=st.booleans(), cursor=st.booleans(), racing=st.integers(0, 3), between=st.booleans())
    def connect(self, n: int, mark: bool, cursor: bool, racing: int, between: bool) -> None:
        """Also while connected: the same device replaces its session. `racing`: so many sends of
        another device go out beside the hello; `between`: all of them after its listing was read
        and before its welcome is made.
        """
        self.run(self._connect(self.devices[n], mark, cursor, racing, between))

    async def _connect(self, device: Device, mark: bool, cursor: bool, racing: int = 0, between: bool = False) -> None:
        await self.check()
        if device.peer is not None:
            self.dropped.append(device.peer)
            device.peer = None
        keys: dict[str, Any] = {}
        if cursor and device.have is not None and self.c is not None:
            keys["cursors"] = {self.c: device.have}
        if mark and device.since is not None:
            keys.update(since=device.since, epoch=device.epoch)
        peer = await self.world.server.open()
        token = self.world.server.token(device.user)
        self.world.listed.clear()
        if between:
            self.world.go_on.clear()
        id = await peer.post("hello", v=1, token=token, device=device.name, **keys)
        if between:
            await self.world.listed.wait()
        sender = next((d for d in self.devices if d.peer is not None), None)
        posted = []
        for _ in range(racing if sender is not None else 0):
            assert sender is not None
            assert sender.peer is not None
            cid = str(uuid.uuid4())
            posted.append((cid, await sender.peer.post("send", to=self.other(sender.user), cid=cid, body="race")))
        oks = []
        if between:
            oks = (
                [await sender.peer.reply(posted_id) for _, posted_id in posted]
                if sender is not None and sender.peer is not None
                else []
            )
            self.world.go_on.set()
        welcome = await peer.reply(id)
        assert (welcome["t"], welcome["more"]) == ("welcome", False), welcome
        device.since, device.epoch = welcome["since"], welcome["epoch"]
        items = welcome["conversations"]
        head = items[0]["head"] if items else 0
        had = device.have
        for k, (cid, posted_id) in enumerate(posted):
            assert sender is not None
            assert sender.peer is not None
            ok = oks[k] if oks else await sender.peer.reply(posted_id)
            entry = self.make(sender, cid, "message", "race")
            assert (ok["t"], ok["seq"]) == ("ok", entry.seq), ok
            self.c = ok["c"]
        device.peer = peer
        assert not items or not items[0].get("page")
        if "cursors" in keys or (had is not None and not items and "since" in keys):
            assert had is not None
            start = had  # named, or unchanged since the mark: it goes on where the device was
        else:
            start = head if items else 0  # a conversation that did not exist yet starts with its first entry
        device.expect = [self.frame(e, device.user) for e in self.log[start:]]
        device.have = len(self.log)
        if items:
            self._item(device, items[0], head)

    def _item(self, device: Device, item: Frame, head: int) -> None:
        delivered, read = self.cursors[device.user]
        unread = sum(e.kind == "message" and e.sender != device.user and e.seq > read for e in self.log[:head])
        seen = (item["c"], item["peer"], item["head"], item["delivered"], item["read"], item["unread"])
        assert seen == (self.c, self.other(device.user), head, delivered, read, unread)
        theirs = self.theirs(device, head)
        assert (item["peer_delivered"], item["peer_read"], item["open"]) == (*theirs, self.is_open(head))
        device.told |= {device.user: (delivered, read), self.other(device.user): theirs}

    @precondition(lambda self: self.anybody)
    @rule(n=WHICH)
    def drop(self, n: int) -> None:
        device = self.live(n)
        assert device.peer is not None
        device.peer.ws.transport.abort()
        device.peer = None

    @precondition(lambda self: self.anybody)
    @rule(n=WHICH, body=BODIES, by_name=st.booleans(), retry=st.booleans())
    def send(self, n: int, body: str, by_name: bool, retry: bool) -> None:
        device, cid = self.live(n), str(uuid.uuid4())
        keys = {"retry": True} if retry else {}
        ok = self.run(self.request(device, "send", cid=cid, body=body, **keys, **self.where(device, by_name)))
        entry = self.make(device, cid, "message", body)
        assert (ok["t"], ok["seq"], ok.get("dup")) == ("ok", entry.seq, None), ok
        self.c = ok["c"]

    @precondition(lambda self: self.anybody)
    @rule(n=WHICH, bodies=st.lists(BODIES, min_size=2, max_size=5))
    def pipeline(self, n: int, bodies: list[str]) -> None:
        """Several at once; the last one's cid twice."""
        self.run(self._pipeline(self.live(n), bodies))

    async def _pipeline(self, device: Device, bodies: list[str]) -> None:
        assert device.peer is not None
        made = [str(uuid.uuid4()) for _ in bodies]
        ids = [
            await device.peer.post("send", to=self.other(device.user), cid=cid, body=body)
            for cid, body in zip(made, bodies, strict=True)
        ]
        again = await device.peer.post("send", to=self.other(device.user), cid=made[-1], body="again")
        for id, cid, body in zip(ids, made, bodies, strict=True):
            ok = await device.peer.reply(id)
            entry = self.make(device, cid, "message", body)
            assert (ok["seq"], ok.get("dup")) == (entry.seq, None), ok
            self.c = ok["c"]
        dup = await device.peer.reply(again)
        assert (dup["seq"], dup["dup"]) == (len(self.log), True), dup

    @precondition(lambda self: sum(d.peer is not None for d in self.devices) > 1)
    @rule(n=WHICH, body=BODIES)
    def send_and_lose_the_ok(self, n: int, body: str) -> None:
        """It is in the log, as another device sees; its sender was cut off and does not know."""
        self.run(self._lose(self.live(n), body))

    async def _lose(self, device: Device, body: str) -> None:
        await self.check()
        assert device.peer is not None
        cid = str(uuid.uuid4())
        await device.peer.post("send", to=self.other(device.user), cid=cid, body=body)
        witness = next(d for d in self.devices if d.peer is not None and d is not device)
        assert witness.peer is not None
        seen = await witness.peer.push("entry")
        witness.peer.pushes.insert(0, seen)
        device.peer.ws.transport.abort()
        had, device.peer = device.have, None
        entry = self.make(device, cid, "message", body)
        device.have = had
        self.c = seen["c"]
        device.unanswered.append((cid, entry.seq))

    @precondition(lambda self: any(d.peer is not None and d.unanswered for d in self.devices))
    @rule(body=BODIES, keep=st.booleans())
    def retry(self, body: str, keep: bool) -> None:
        """The first seq comes back, also with another body; nothing is pushed to anybody."""
        device = next(d for d in self.devices if d.peer is not None and d.unanswered)
        cid, seq = device.unanswered[0] if keep else device.unanswered.pop(0)
        ok = self.run(self.request(device, "send", to=self.other(device.user), cid=cid, body=body, retry=True))
        assert (ok["t"], ok["seq"], ok["dup"]) == ("ok", seq, True), ok

    @precondition(lambda self: self.anybody and self.log)
    @rule(n=WHICH, at=st.integers(0, 1 << 16), body=st.none() | BODIES, by_name=st.booleans())
    def change(self, n: int, at: int, body: str | None, by_name: bool) -> None:
        """Edit (or delete, without a body) any entry; only the author's own kept message gives way."""
        device, cid, target = self.live(n), str(uuid.uuid4()), self.log[at % len(self.log)]
        keys = {"body": body} if body is not None else {}
        kind = "edit" if body is not None else "delete"
        reply = self.run(self.request(device, kind, cid=cid, ref=target.seq, **keys, **self.where(device, by_name)))
        if target.kind != "message":
            assert reply.get("code") == "no_message", reply
        elif target.sender != device.user:
            assert reply.get("code") == "not_author", reply
        elif target.body is None:
            assert reply.get("code") == "deleted", reply
        else:
            entry = self.make(device, cid, kind, body, target.seq)
            assert (reply["t"], reply["seq"]) == ("ok", entry.seq), reply

    @precondition(lambda self: self.anybody and self.log)
    @rule(n=WHICH, seq=st.integers(1, 40), t=st.sampled_from(["ack", "read"]))
    def move_a_cursor(self, n: int, seq: int, t: str) -> None:
        device = self.live(n)
        reply = self.run(self.request(device, t, seq=seq, **self.where(device, False)))
        if seq > len(self.log):
            assert reply["code"] == "bad_seq", reply
            return
        delivered, read = self.cursors[device.user]
        self.cursors[device.user] = (max(delivered, seq), max(read, seq if t == "read" else 0))
        assert (reply["delivered"], reply["read"]) == self.cursors[device.user]
        device.told[device.user] = self.cursors[device.user]

    @precondition(lambda self: self.anybody and self.log)
    @rule(n=WHICH, at=st.integers(1, 45), limit=st.integers(1, 6), way=st.sampled_from(["before", "after", "newest"]))
    def history(self, n: int, at: int, limit: int, way: str) -> None:
        device = self.live(n)
        keys = {} if way == "newest" else {way: at}
        page = self.run(self.request(device, "history", limit=limit, **keys, **self.where(device, False)))
        assert (page["t"], page["head"], page["floor"]) == ("ok", len(self.log), 1), page
        seqs = [e["seq"] for e in page["entries"]]
        within = (
            [e for e in self.log if e.seq > at]
            if way == "after"
            else [e for e in self.log if way == "newest" or e.seq < at]
        )
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs))) if seqs else not within
        if seqs:
            assert (seqs[0] == within[0].seq) if way == "after" else (seqs[-1] == within[-1].seq)
            assert sum(e["kind"] == "message" for e in page["entries"]) <= limit
            assert page["more"] == (seqs[-1] < len(self.log) if way == "after" else seqs[0] > 1)
        assert [self.facts(e) for e in page["entries"]] == told_once(
            [self.frame(self.log[seq - 1], device.user) for seq in seqs]
        )

    @precondition(lambda self: self.anybody)
    @rule(n=WHICH)
    def conversations(self, n: int) -> None:
        device = self.live(n)
        items = self.run(self.request(device, "conversations"))["conversations"]
        assert len(items) == (1 if self.log else 0)
        if items:
            self._item(device, items[0], len(self.log))

    @precondition(lambda self: self.anybody)
    @rule(n=WHICH)
    def watch(self, n: int) -> None:
        """The other is hidden until both have sent; who is nobody's peer always is."""
        device = self.live(n)
        names = [self.other(device.user), "a stranger", device.user]
        shown = self.run(self.request(device, "watch", users=names))["presence"]
        hidden = {one["user"] for one in shown if one["state"] == "hidden"}
        assert hidden == ({"a stranger"} if self.is_open(len(self.log)) else {"a stranger", names[0]}), shown

    @precondition(lambda self: self.c is not None)
    @rule(t=st.sampled_from(["send", "edit", "delete", "read", "ack", "history", "typing"]))
    def a_stranger_names_it(self, t: str) -> None:
        """It is not theirs, in memory or not."""
        self.run(self._stranger(t))

    async def _stranger(self, t: str) -> None:
        if self.stranger is None:
            self.stranger = await self.world.server.connect(f"carol{self.world.examples}")
            self.dropped.append(self.stranger)
        keys: dict[str, dict[str, Any]] = {
            "send": {"cid": str(uuid.uuid4()), "body": "x"},
            "edit": {"cid": str(uuid.uuid4()), "ref": 1, "body": "x"},
            "delete": {"cid": str(uuid.uuid4()), "ref": 1},
            "read": {"seq": 1},
            "ack": {"seq": 1},
        }
        reply = await self.stranger.request(t, c=self.c, **keys.get(t, {}))
        assert reply.get("code") == "no_conversation", reply
        assert self.stranger.pushes == []

    # ---- the end ---------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            self.run(self._end())
        finally:
            for peer in [*self.dropped, *(d.peer for d in self.devices if d.peer is not None)]:
                peer.ws.transport.abort()
            self.world.server.peers.clear()

    async def _end(self) -> None:
        """All devices come back, get what they missed, and page through all of it; PostgreSQL has
        the same.
        """
        if self.c is None:
            return
        for device in self.devices:
            await self._connect(device, True, True)
        await self.check()
        for device in self.devices:
            entries: list[Frame] = []
            expected: list[Frame] = []
            more = True
            while more:
                page = await self.request(
                    device, "history", c=self.c, after=entries[-1]["seq"] if entries else 0, limit=3
                )
                expected += told_once([self.frame(self.log[e["seq"] - 1], device.user) for e in page["entries"]])
                entries += page["entries"]
                more = page["more"]
            assert [e["seq"] for e in entries] == [e.seq for e in self.log]
            assert [self.facts(e) for e in entries] == expected
            times = [e["ts"] for e in entries]
            assert times == sorted(times)
        log, _ = await asyncio.to_thread(read_log, self.world.conninfo)
        stored = [(e.seq, e.sender, e.cid, e.kind, e.ref, e.body) for e in log[self.c]]
        assert stored == [(e.seq, e.sender, e.cid, e.kind, e.ref, e.body) for e in self.log]
        note(f"{len(self.log)} entries")


def told_once(page: list[Frame]) -> list[Frame]:
    """An edit's text is left out of a page that has it already: with the message, or with a later
    edit of it.
    """
    messages = {e["seq"] for e in page if e["kind"] == "message"}
    latest = {e["ref"]: e["seq"] for e in page if e["kind"] == "edit"}
    return [
        {**e, "body": None} if e["kind"] == "edit" and (e["ref"] in messages or latest[e["ref"]] != e["seq"]) else e
        for e in page
    ]


@pytest.fixture(params=["", "forgetful", "sweeping"])
def world(make_db: Callable[[], str], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    conninfo = make_db()
    with asyncio.Runner() as runner:

        async def start() -> Server:
            node = Node(
                Settings(
                    data_dir=tmp_path,
                    port=0,
                    admin_port=-1,
                    database_url=SecretStr(conninfo),
                    log_level="warning",
                    rate_messages=10_000,
                    rate_per_ms=100,
                    frames_per_s=100_000,
                    frames_burst=100_000,
                    new_conversations_per_hour=10_000,
                )
            )
            await node.start()
            if request.param:
                forgetful(node, 1)
            if request.param == "sweeping":
                sweeping(node.store)
            return Server(node)

        server = runner.run(start())
        try:
            yield World(runner, server, conninfo, way=request.param)
        finally:
            runner.run(server.stop())


@pytest.mark.slow
def test_devices_agree_with_the_model(world: World) -> None:
    machine = type("ChatHere", (Chat,), {"world": world})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=120, stateful_step_count=50, deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )  # fmt: skip
    metrics = world.server.node.metrics
    if world.way == "sweeping":
        assert metrics.hellos_swept > 100, "else it was not tried"
    if world.way:
        assert min(metrics.conversations_loaded, metrics.conversations_let_go) > 500, "else it was not tried"
    assert metrics.conversations_unproven == 0
