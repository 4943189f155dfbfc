"""Gaps under every order of arrival: each session gets each entry once and in order, its own as
`ok`.

Delivery, gaps and the pipeline's answers are the real ones. Modelled are the log, the lane that has
batches under way, the bus, time, and the loop: a query takes its snapshot when it is asked, and is
answered when the test says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, cast

import orjson
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from chatd import errors
from chatd.chat import gap_fill
from chatd.chat.delivery import Delivery
from chatd.chat.ports import OwnCount, Rates
from chatd.chat.remote_entries import RemoteEntries
from chatd.chat.send import SendPipeline
from chatd.core.batch import Item
from chatd.core.conversation import Conversation
from chatd.core.conversations import Registry
from chatd.core.frame_rate import FrameRate
from chatd.core.session import Session, State, User
from chatd.ids import Cid, ConvId, DeviceId, UserId
from chatd.metrics import Metrics
from chatd.postgres.rows import Head
from chatd.protocol import MESSAGE, Stored, entry
from chatd.store import Store
from chatd.wire.node_messages import Entry

ALICE, BOB = UserId("alice"), UserId("bob")
CONV: Final = ConvId(1)
RATES: Final = Rates(1_000, 5.0, 8, 100)
TURNS_MAX: Final = 1_000  # until nothing moves any more


class Wire:
    """Implements `session.Sink`: keeps what a client reads."""

    address = "test"
    is_paused = False

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []

    def send(self, frame: bytes) -> None:
        self.frames.append(orjson.loads(frame[2 if frame[1] < 126 else 4 :]))

    def close(self, code: int, reason: str) -> None:
        raise AssertionError(reason)

    async def drained(self) -> None: ...

    @property
    def seqs(self) -> list[int]:
        """Of its entries, and of the `ok`s that stand in their places."""
        return [one["seq"] for one in self.frames if one["t"] == "entry" or (one["t"] == "ok" and "dup" not in one)]


class Query:
    """A query under way: awaited by its task, and answered by the test."""

    def __init__(self, answer: list[Any]) -> None:
        self.answer = answer

    def __await__(self) -> Generator[None, None, list[Any]]:
        yield
        return self.answer


class Others:
    """As much of `ports.OtherNodes` as delivery asks for, with a bus that can be away; bob is at
    another node.
    """

    share_log: Final = True

    def __init__(self) -> None:
        self.hears = True
        self.published: list[int] = []  # seqs
        self.ahead_n = 0

    def channels(self, me: User | None, peer_id: UserId, peer: User | None) -> tuple[UserId, ...]:
        return () if peer is not None else (peer_id,)

    def entry(self, channels: tuple[UserId, ...], conv: Conversation, item: Item, payload: bytes) -> None:
        assert (channels, item.peer) == ((BOB,), BOB)
        self.published.append(conv.head)

    def ahead(self, conv: Conversation, first: int, ts: int, items: list[Item]) -> None:
        assert first > conv.head
        self.ahead_n += len(items)
        self.published += range(first, first + len(items))


class Underway(NamedTuple):
    """A batch that is committed, and whose answer has not come yet."""

    first: int
    items: list[Item]
    is_lost: bool


class World:
    """One conversation of alice and bob; alice is at this node with two devices, bob at another."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.tasks: deque[Coroutine[Any, Any, None]] = deque()
        self.log: list[Stored] = []
        self.bus: list[Entry] = []
        self.underway: deque[Underway] = deque()
        self.queries = 0
        self.suspected = 0
        self.registry, self.metrics, self.others = Registry(), Metrics(), Others()
        count = OwnCount(RATES, lambda: self.now)
        alice = User(ALICE, *count.windows(ALICE))
        alice.loaded = True
        self.registry.add_user(alice, self.now)
        self.conv = self.registry.hold(CONV, ALICE, BOB)
        self.lanes = self
        self.log_state = SimpleNamespace(suspect=self.suspect)
        store = cast("Store", SimpleNamespace(
            lanes=self, heads=self.heads, heads_decided=self.heads, entries_many=self.entries_many,
            log=self.log_state, history=SimpleNamespace(shown=lambda _: None),
        ))  # fmt: skip
        self.delivery = Delivery(
            self.registry, store, self.metrics, now=lambda: self.now, later=self.later, spawn=self.tasks.append,
            presence_push=cast("Any", SimpleNamespace(conversation_opened=lambda *_: None)),
            others=cast("Any", self.others),
        )  # fmt: skip
        self.gaps = self.delivery.gaps
        self.remote = RemoteEntries(self.registry, store, self.delivery, lambda: self.now_ms)
        self.pipeline = SendPipeline(
            self.registry, cast("Any", self), count, cast("Any", None), self.delivery, self.gaps.outcomes,
            self.metrics, cast("Any", SimpleNamespace(refused=lambda *_: None)),
        )  # fmt: skip
        self.phone, self.tablet = (self.session(alice, name) for name in ("phone", "tablet"))
        self.id = 0
        self.sent: dict[int, Cid] = {}

    @property
    def now_ms(self) -> int:
        return round(self.now * 1000)

    def session(self, user: User, name: str) -> Session:
        session = Session(Wire(), FrameRate(1e6, 1_000), self.now)
        session.state, session.user, session.device = State.LIVE, user, DeviceId(name)
        self.registry.attach(user, session.device, session)
        return session

    # ---- the parts that are modelled -------------------------------------------------------------

    def suspect(self, *, is_behind: bool = False) -> None:
        self.suspected += 1

    def later(self, wait_s: float, run: Callable[[], None]) -> None:
        self.timers.append((self.now + wait_s, run))

    def under_way(self, lanes: Iterable[int]) -> dict[tuple[ConvId, int, str], Item]:
        return {(CONV, item.side, item.cid): item for batch in self.underway for item in batch.items}

    def heads(self, convs: Iterable[ConvId]) -> Query:
        self.queries += 1
        a = sum(e.side == 0 for e in self.log)
        return Query([Head(CONV, len(self.log), a, len(self.log) - a, self.now_ms, ALICE, BOB)])

    def entries_many(self, wants: Sequence[tuple[ConvId, int, int]], rows: int) -> Query:
        self.queries += 1
        return Query([(CONV, e) for _, after, upto in wants for e in self.log[after:upto][:rows]])

    # ---- what happens ----------------------------------------------------------------------------

    def commit(self, side: int) -> Stored:
        seq = len(self.log) + 1
        na = sum(e.side == 0 for e in self.log) + (side == 0)
        cid = Cid(f"{seq:08x}-0000-4000-8000-000000000000")
        self.log.append(Stored(seq, self.now_ms, side, MESSAGE, cid, f"m{seq}", None, None, None, na, seq - na))
        return self.log[-1]

    def write_here(self, n: int, is_lost: bool = False) -> None:
        """Alice's phone sends; the batch commits."""
        items, first = [], len(self.log) + 1
        for _ in range(n):
            self.id += 1
            e = self.commit(0)
            self.sent[self.id] = Cid(e.cid)
            items.append(Item(self.phone, self.id, self.conv, BOB, 0, Cid(e.cid), MESSAGE, e.body, None, 0))
            self.conv.pending += 1
        self.underway.append(Underway(first, items, is_lost))

    def write_there(self, is_lost: bool = False, side: int = 1, is_ahead: bool = False) -> None:
        """Bob sends, at the other node, or a third device of alice does.

        `is_ahead`: it is published before that node has delivered it.
        """
        e = self.commit(side)
        if not is_lost:
            names = self.conv.names(side)
            frame = entry(CONV, e.seq, e.ts, *names, e.kind, None, e.body, None)
            counts = (0, 0) if is_ahead else (e.na, e.nb)
            self.bus.append(Entry(CONV, e.seq, e.ts, *counts, side, e.kind, Cid(e.cid), frame))

    def hear(self, n: int) -> None:
        self.remote.heard(ALICE, self.bus.pop(n))

    def answer(self) -> None:
        """The lane has the answer of its batch, or its connection is cut."""
        first, items, is_lost = self.underway.popleft()
        self.conv.pending -= len(items)
        if is_lost:
            self.pipeline.failed(items, errors.Unavailable("away", retry_ms=1), is_unknown=True)
            self.gaps.outcomes.outcome_unknown({CONV}, ())
        else:
            self.delivery.deliver(self.conv, first, self.log[first - 1].ts, items, self.now)

    def step(self) -> None:
        """The oldest task goes on: it asks something, or gets its answer."""
        task = self.tasks.popleft()
        try:
            task.send(None)
        except StopIteration:
            return
        self.tasks.append(task)

    def pass_time(self) -> None:
        at = min(at for at, _ in self.timers)
        self.now = max(self.now, at)
        due = [run for when, run in self.timers if when <= self.now]
        self.timers = [(when, run) for when, run in self.timers if when > self.now]
        for run in due:
            run()

    def settle(self) -> None:
        """All that is under way comes; then the change feed tells of the head."""
        for is_last in (False, True):
            for _ in range(TURNS_MAX):
                if self.underway:
                    self.answer()
                elif self.bus:
                    self.hear(0)
                elif self.tasks:
                    self.step()
                elif self.timers:
                    self.pass_time()
                else:
                    break
            if not is_last:
                self.gaps.look_up((CONV,))

    def check(self) -> None:
        everything = list(range(1, len(self.log) + 1))
        phone, tablet = cast("Wire", self.phone.sink), cast("Wire", self.tablet.sink)
        assert tablet.seqs == everything
        assert phone.seqs == everything
        replies = [one for one in phone.frames if one["t"] in ("ok", "err")]
        assert sorted(one["id"] for one in replies) == sorted(self.sent), "each request has one answer"
        assert not any("dup" in one for one in replies)
        lost = {self.sent[one["id"]] for one in replies if one["t"] == "err"}
        own = [one["cid"] for one in phone.frames if one["t"] == "entry" and "cid" in one]
        assert set(own) - set(self.sent.values()) <= {e.cid for e in self.log}
        assert {cid for cid in own if cid in self.sent.values()} == lost, "an own entry only where there was an error"
        assert self.conv.gap is None
        assert (self.gaps._early, list(self.gaps._waits), self.gaps._open) == (0, [], {})
        assert (self.conv.na, self.conv.nb) == (self.log[-1].na, self.log[-1].nb) if self.log else True
        assert self.conv.pending == self.suspected == 0
        assert self.phone.order.cuts == {} or lost
        published, made = self.others.published, {e.seq for e in self.log if e.cid in self.sent.values()}
        assert len(published) == len(set(published))
        kept = {e.seq for e in self.log if e.cid in set(self.sent.values()) - lost}
        assert kept <= set(published) <= made


ACTIONS: Final = ("here", "here lost", "there", "there lost", "tablet", "hear", "hear twice", "answer", "step", "time",
                  "bus", "feed")  # fmt: skip


def take(world: World, action: str, data: st.DataObject) -> None:
    """One of `ACTIONS`, if it is possible now."""
    if action.startswith("here"):
        world.write_here(data.draw(st.integers(1, 3)), is_lost="lost" in action)
    elif action.startswith("there"):
        world.write_there(is_lost="lost" in action, is_ahead=data.draw(st.booleans()))
    elif action == "tablet":
        world.write_there(side=0)
    elif action.startswith("hear") and world.bus:
        n = data.draw(st.integers(0, len(world.bus) - 1))
        if action == "hear twice":
            world.bus.append(world.bus[n])
        world.hear(n)
    elif action == "answer" and world.underway:
        world.answer()
    elif action == "step" and world.tasks:
        world.step()
    elif action == "time" and world.timers:
        world.pass_time()
    elif action == "bus":
        world.others.hears = not world.others.hears
    elif action == "feed":
        world.gaps.look_up((CONV,))


@settings(deadline=None)
@given(st.data())
def test_each_session_gets_each_entry_once_in_order_and_its_own_as_ok(data: st.DataObject) -> None:
    world = World()
    try:
        for action in data.draw(st.lists(st.sampled_from(ACTIONS), max_size=60)):
            take(world, action, data)
        world.settle()
    finally:
        for task in world.tasks:  # of an example that was too long
            task.close()
    event(f"queries: {min(world.queries, 5)}")
    event(f"gaps closed: {min(world.metrics.gaps_closed, 5)}")
    event(f"fills: {min(world.metrics.gap_fills, 5)}")
    world.check()


def test_what_the_bus_brings_in_time_costs_no_query() -> None:
    """Two people write at once on two nodes: each batch finds seqs that the other node took."""
    world = World()
    for _ in range(50):
        world.write_there()
        world.write_here(2)
        world.write_there()
        world.answer()  # before the entry that it follows
        world.hear(1)  # and the later one before the earlier one
        world.hear(0)
    assert world.queries == 0
    assert (world.metrics.gap_fills, world.metrics.gaps_closed) == (0, 50)
    assert len(world.timers) == 1, "one timer for all gaps"
    world.pass_time()
    assert (world.timers, world.tasks) == ([], deque())
    world.settle()
    world.check()


def test_what_waits_here_does_not_keep_others_waiting() -> None:
    """Two nodes that write in turn each waited for the other: the delay grew without end."""
    world = World()
    world.write_there()
    world.write_here(2)
    world.answer()
    assert (world.conv.head, world.others.published, world.others.ahead_n) == (0, [2, 3], 2)
    world.hear(0)
    assert (world.conv.head, world.others.published) == (3, [2, 3]), "once"
    world.settle()
    world.check()


def test_what_the_bus_lost_is_read_once_its_time_is_over() -> None:
    world = World()
    world.write_there(is_lost=True)
    world.write_here(1)
    world.answer()
    assert world.queries == 0
    world.pass_time()
    world.step()
    assert world.queries == 1, "a result shows what the log has: no head is looked up"
    world.settle()
    world.check()
    assert (world.metrics.gap_fills, world.metrics.gaps_closed) == (1, 0)


def test_without_a_bus_nothing_waits() -> None:
    world = World()
    world.others.hears = False
    world.write_there(is_lost=True)
    world.write_here(1)
    world.answer()
    assert world.timers == []
    world.settle()
    world.check()


def test_an_own_entry_that_is_read_before_its_answer_comes_is_acked_there() -> None:
    """The sender got it as an entry, and then an `ok` with `dup`."""
    world = World()
    world.others.hears = False
    world.write_there(is_lost=True)
    world.write_here(2)
    world.gaps.look_up((CONV,))
    while world.tasks:
        world.step()
    assert world.conv.head == 3
    assert [(one["t"], one["seq"]) for one in cast("Wire", world.phone.sink).frames] == [
        ("entry", 1), ("ok", 2), ("ok", 3)
    ]  # fmt: skip
    assert world.metrics.sends_ok == 2
    world.answer()
    world.settle()
    world.check()
    assert (world.metrics.sends_ok, world.metrics.sends_dup) == (2, 0)


def test_an_own_entry_that_was_acked_gets_no_error_when_its_answer_is_lost() -> None:
    world = World()
    world.write_here(1, is_lost=True)
    world.gaps.look_up((CONV,))
    while world.tasks or world.timers:
        (world.step if world.tasks else world.pass_time)()
    world.answer()
    world.settle()
    world.check()
    assert [one["t"] for one in cast("Wire", world.phone.sink).frames] == ["ok"]
    assert world.phone.order.cuts == {}, "nothing is blocked behind it"


def test_what_another_node_announces_and_the_log_does_not_have_is_dropped() -> None:
    """PostgreSQL decides: it may be of another log."""
    world = World()
    world.write_there()
    world.bus[0] = world.bus[0]._replace(seq=7)
    world.log.clear()
    world.hear(0)
    assert world.conv.gap is not None
    world.settle()
    world.check()
    assert cast("Wire", world.tablet.sink).frames == []


@pytest.mark.parametrize("of_all", [False, True])
def test_past_the_bound_of_early_entries_the_log_is_read_at_once(monkeypatch: pytest.MonkeyPatch, of_all: bool) -> None:
    monkeypatch.setattr("chatd.core.gap.EARLY_MAX", 3)
    if of_all:
        monkeypatch.setattr("chatd.core.gap.EARLY_MAX", 100)
        monkeypatch.setattr(gap_fill, "EARLY_ALL_MAX", 3)
    world = World()
    world.write_there(is_lost=True)
    for _ in range(4):
        world.write_there()
        assert not world.tasks
        world.hear(0)
    assert world.tasks, "no timer is waited for"
    assert world.gaps._early == 3
    world.settle()
    world.check()
