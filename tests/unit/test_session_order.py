"""Order and rate under delays, losses and crowds: outboxes as docs/protocol.md section 5 asks for, over `session` and `lanes`, in simulated time.

    Outbox ── requests ──► Node (sessions, the gate, one lane, a log) ── answers ──► Outbox

The node does what `entering`, `quota`, `writer` and `delivery` do with the pure parts, and nothing else; the log is a list, and Redis, where nodes
share their limits, a model. Time is a heap of events, chance comes from one seed. What must hold at the end, whatever happened on the way:

- every entry is in the log once, and the entries of a device in a conversation stand in the order in which it wrote them (invariants 3 and 10);
- nobody honest was punished, no more than 10 entries were made in any 5 s, and every outbox is empty: nothing waits for ever.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatd import errors
from chatd.errors import CloseCode
from chatd.gate import Gate
from chatd.ids import Cid, ConvId, UserId
from chatd.lanes import AGAIN, PROBE, Batch, Item, LaneQueue
from chatd.limits import FORGET_S, Penalty, SharedPenalty, SharedWindow, SlidingWindow, TokenBucket
from chatd.protocol import MESSAGE, Send
from chatd.quota import RATE, read_answer, row_of
from chatd.registry import Conversation, User
from chatd.session import End, Session, State, Throttled, Verdict
from tests.quota_model import US, Model, most_in_any
from tests.samples import request

if TYPE_CHECKING:
    from collections.abc import Callable

    from chatd.gate import Call

ALICE = UserId("alice")
PER_PERIOD, PERIOD_S = 10, 5.0
EVENTS_MAX = 400_000
DEADLINE_S = 0.05
REDIS_EPOCH_US = 1_790_000_000_000_000


class Trouble(NamedTuple):
    """What goes wrong, and how often."""

    outages: float = 0.0  # of batches: the answer is lost; half of them were written
    halves: float = 0.0  # of batches: the data makes them fail, they are written in two parts
    queue_max: int = 10_000
    rows_max: int = 256
    frames_per_s: float = 1e6
    frames_burst: int = 10_000
    delay_s: float = 0.02  # one way, at most
    commit_s: float = 0.02  # at most
    gate_s: float = 0.005  # to Redis and back, at most
    gate_max: int = 10_000  # that may wait at the gate
    silences: float = 0.0  # of calls to Redis: no answer within the deadline; half of them were done


class World:
    """Simulated time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1_000.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._n = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._n += 1
        heapq.heappush(self._events, (max(when, self.now), self._n, what))

    def run(self, until_s: float) -> None:
        end = self.now + until_s
        while self._events and self._events[0][0] <= end:
            self.now, _, what = heapq.heappop(self._events)
            what()
            assert self._n < EVENTS_MAX, "it goes round in circles"


class Line:
    """A connection: both directions keep their order."""

    def __init__(self, world: World, delay_s: float) -> None:
        self.world, self.delay_s = world, delay_s
        self._last = [0.0, 0.0]

    def carry(self, direction: int, what: Callable[[], None]) -> None:
        world = self.world
        at = max(self._last[direction], world.now + world.random.uniform(0, self.delay_s))
        self._last[direction] = at
        world.at(at, what)


class Node:
    """One node with one user, and one lane. With `redis` its limits are shared, with `beside` the database is another node's, too."""

    def __init__(self, world: World, trouble: Trouble, redis: Model | None = None, beside: Node | None = None) -> None:
        self.world, self.trouble = world, trouble
        self.redis = redis
        self.gate = Gate(trouble.gate_max, self.wake)
        self.calling = False
        self.user = User(ALICE, SlidingWindow(PER_PERIOD, PERIOD_S), Penalty(8), SlidingWindow(100, 3600.0))
        if redis is not None:
            self.user.penalty = penalty = SharedPenalty(8)
            self.user.window = SharedWindow(PER_PERIOD, PERIOD_S, RATE, ALICE, self.gate, penalty)
        self.queue = LaneQueue(trouble.rows_max)
        self.busy = False
        self.log: list[tuple[UserId, Cid]] = [] if beside is None else beside.log
        self.written_at: list[float] = [] if beside is None else beside.written_at
        self.convs: dict[UserId, Conversation] = {}
        self.answer: dict[Session, Callable[[int, errors.Refused | None], None]] = {}
        self.ended: list[CloseCode] = []

    def connect(self, answer: Callable[[int, errors.Refused | None], None]) -> Session:
        session = Session(self, TokenBucket(self.trouble.frames_per_s, self.trouble.frames_burst), self.world.now)
        session.state, session.user = State.LIVE, self.user
        self.answer[session] = answer
        return session

    def send(self, frame: bytes) -> None: ...
    def close(self, code: int, reason: str) -> None: ...

    # ---- as `entering` does

    def receive(self, session: Session, payload: bytes) -> None:
        if session.state is State.CLOSED:
            return
        effect = session.receive(payload, self.world.now)
        if isinstance(effect, Throttled):
            assert isinstance(effect.request, Send)
            assert effect.request.to is not None
            error = errors.RateLimited("too many frames", retry_ms=effect.retry_ms)
            self.answer[session](effect.request.id, session.denied(effect.request.to, effect.request, error))
            return
        assert isinstance(effect, Send), effect
        assert effect.to is not None
        if (error_or_none := self.enter(session, effect, effect.to)) is not None:
            self.answer[session](effect.id, error_or_none)

    def enter(self, session: Session, entry: Send, peer: UserId) -> errors.Refused | None:
        if self.redis is None:
            verdict = session.admit(peer, entry.cid, self.world.now)
            return verdict if isinstance(verdict, errors.Blocked) else self.queued(session, entry, peer, verdict)
        again = session.comes(peer, entry.cid, self.world.now)
        if isinstance(again, errors.Blocked):
            return again
        if not self.gate.put(self.user.window, self.world.now, lambda came: self.through(session, entry, peer, again, came)):  # type: ignore[arg-type]
            return session.denied(peer, entry, errors.Overloaded("full", retry_ms=200))
        return None

    def through(self, session: Session, entry: Send, peer: UserId, again: bool, came: float) -> None:
        error = session.stands(peer, entry.cid, entry.id) or self.queued(session, entry, peer, session.judge(peer, again, came))
        if error is not None:
            self.answer[session](entry.id, error)

    def queued(self, session: Session, entry: Send, peer: UserId, verdict: Verdict) -> errors.Refused | None:
        conv = self.convs.setdefault(peer, Conversation(ConvId(len(self.convs) + 1), ALICE, peer))
        flags = (PROBE if verdict.probe else 0) | (AGAIN if entry.retry else 0)
        item = Item(session, entry.id, conv, peer, 0, entry.cid, MESSAGE, entry.body, None, flags)
        item.taken_at, item.again = verdict.taken_at, verdict.again
        if len(self.queue) >= self.trouble.queue_max:
            self.free(item, give_back=True)
            return session.denied(peer, entry, errors.Overloaded("full", retry_ms=200))
        self.queue.items.append(item)
        if not self.busy:
            self.busy = True
            self.world.at(self.world.now, self.write_next)
        return None

    # ---- as `quota` does

    def wake(self) -> None:
        if not self.calling:
            self.calling = True
            self.world.at(self.world.now, self.call)

    def call(self) -> None:
        if self.gate.idle:
            self.calling = False
            return
        call, world = self.gate.gather(), self.world
        if not call.asks:
            self.gate.decide(call, 0, [], world.now)
            self.call()
            return
        silent = world.random.random() < self.trouble.silences
        answer: list[bytes] = []
        if not silent or world.random.random() < 0.5:
            world.at(world.now + world.random.uniform(0, self.trouble.gate_s / 2), lambda: answer.append(self.ask(call)))
        if silent:
            world.at(world.now + DEADLINE_S, lambda: self.alone(call))
        else:
            world.at(world.now + self.trouble.gate_s / 2 + world.random.uniform(0, self.trouble.gate_s / 2), lambda: self.decide(call, answer[0]))

    def ask(self, call: Call) -> bytes:
        assert self.redis is not None
        args = [orjson.dumps([[PER_PERIOD, PERIOD_S * US]]), orjson.dumps([row_of(ask) for ask in call.asks]), int(FORGET_S * US)]
        return self.redis.answer(REDIS_EPOCH_US + round(self.world.now * US), [ask.window.user for ask in call.asks], args)

    def decide(self, call: Call, answer: bytes) -> None:
        mark, rows = read_answer(answer, len(call.asks))
        self.gate.decide(call, mark, rows, self.world.now)
        self.call()

    def alone(self, call: Call) -> None:
        self.gate.alone(call)
        self.calling = False
        self.world.at(self.world.now + 1.0, self.gate.back)

    # ---- as the lane does

    def commit_s(self) -> float:
        return self.world.random.uniform(0.001, self.trouble.commit_s)

    def write_next(self) -> None:
        batch, blocked = self.queue.gather()
        self.blocked(blocked)
        if not batch.items:
            self.busy = False
            return
        chance = self.world.random
        if len(batch.items) > 1 and chance.random() < self.trouble.halves:
            first, second = batch.halves()
            self.world.at(self.world.now + self.commit_s(), lambda: self.first_half(first, second))
        else:
            self.world.at(self.world.now + self.commit_s(), lambda: self.written(batch))

    def first_half(self, first: Batch, second: Batch) -> None:
        self.result(first)
        kept, blocked = second.sift()
        self.blocked(blocked)
        self.world.at(self.world.now + self.commit_s(), lambda: self.written(kept))

    def written(self, batch: Batch) -> None:
        self.result(batch)
        self.write_next()

    def result(self, batch: Batch) -> None:
        if self.world.random.random() < self.trouble.outages:
            if self.world.random.random() < 0.5:
                self.append(batch)
            for item in batch.items:
                for one in (item, *(item.twins or ())):
                    self.free(one, give_back=True)
                    self.tell(one, one.session.failed(one.peer, one.cid, one.id, errors.Unavailable("away", retry_ms=100)))
            return
        notes = self.append(batch)
        for item, note in notes:
            for one in (item, *(item.twins or ())):
                if note == "limited":
                    self.free(one, give_back=True)
                    refused = one.session.limited(one.peer, one.cid, one.id, one.again, self.world.now)
                    if isinstance(refused, End):
                        one.session.state = State.CLOSED
                        self.ended.append(refused.code)
                    else:
                        self.tell(one, refused)
                else:
                    self.free(one, give_back=note == "dup" or one is not item)
                    self.tell(one, None)

    def append(self, batch: Batch) -> list[tuple[Item, str]]:
        """As the database does."""
        notes = []
        for item in batch.items:
            if (item.peer, item.cid) in self.log:
                notes.append((item, "dup"))
            elif item.flags & PROBE:
                notes.append((item, "limited"))
            else:
                self.log.append((item.peer, item.cid))
                self.written_at.append(item.taken_at)
                notes.append((item, ""))
        return notes

    # ---- as `delivery` does

    def blocked(self, items: list[Item]) -> None:
        for item in items:
            self.free(item, give_back=True)
            self.tell(item, errors.Blocked("wait", cid=item.session.overtaken(item.peer, item.id)))

    def free(self, item: Item, *, give_back: bool) -> None:
        if item.flags & PROBE:
            item.session.probed(item.peer)
        elif give_back:
            self.user.window.give_back(item.taken_at)

    def tell(self, item: Item, error: errors.Refused | None) -> None:
        self.answer[item.session](item.id, error)


class Outbox:
    """One device: a queue per conversation; on a retryable err it waits, then sends again from that one on, all with `retry`."""

    def __init__(self, world: World, node: Node, name: str) -> None:
        self.world, self.node, self.name = world, node, name
        self.line = Line(world, node.trouble.delay_s)
        self.session = node.connect(self.answered)
        self.queues: dict[UserId, list[Cid]] = defaultdict(list)
        self.wrote: dict[UserId, list[Cid]] = defaultdict(list)
        self.tries: dict[Cid, int] = {}  # the id of the last try
        self.of: dict[int, tuple[UserId, Cid]] = {}
        self.codes: list[str] = []
        self.last_id = 0

    def write(self, peer: UserId) -> None:
        cid = Cid(f"{len(self.wrote):08x}-0000-4000-8000-{self.world.random.getrandbits(48):012x}")
        self.queues[peer].append(cid)
        self.wrote[peer].append(cid)
        self.push(peer, cid)

    def push(self, peer: UserId, cid: Cid) -> None:
        self.last_id += 1
        payload = request("send", self.last_id, to=peer, cid=cid, retry=cid in self.tries)
        self.tries[cid], self.of[self.last_id] = self.last_id, (peer, cid)
        self.line.carry(0, lambda: self.node.receive(self.session, payload))

    def answered(self, id: int, error: errors.Refused | None) -> None:
        self.line.carry(1, lambda: self.read(id, error))

    def read(self, id: int, error: errors.Refused | None) -> None:
        peer, cid = self.of.pop(id)
        queue = self.queues[peer]
        if error is None:
            if cid in queue:
                queue.remove(cid)
            return
        self.codes.append(error.code)
        if cid not in queue or self.tries[cid] != id:
            return  # settled, or sent again meanwhile
        if error.retry_ms is not None:
            self.world.at(self.world.now + error.retry_ms / 1000, lambda: self.again(peer, cid, id))
        elif error.code == "blocked" and error.cid not in queue:
            self.again(peer, cid, id)  # what it waited for is through
        else:
            assert error.code == "blocked", error

    def again(self, peer: UserId, cid: Cid, id: int) -> None:
        queue = self.queues[peer]
        if cid in queue and self.tries[cid] == id:
            for one in queue[queue.index(cid) :]:
                self.push(peer, one)

    @property
    def waiting(self) -> int:
        return sum(map(len, self.queues.values()))


def check(node: Node, outboxes: list[Outbox], *, exact_rate: bool = True) -> None:
    """The claims at the top of this file."""
    assert [outbox.waiting for outbox in outboxes] == [0] * len(outboxes)
    assert not node.ended
    assert node.user.penalty.until == 0.0
    assert len(set(node.log)) == len(node.log)
    assert len(node.log) == sum(len(cids) for outbox in outboxes for cids in outbox.wrote.values())
    for outbox in outboxes:
        for peer, cids in outbox.wrote.items():
            assert [cid for p, cid in node.log if p == peer and cid in set(cids)] == cids
        assert not outbox.session.probing
    if exact_rate:
        times = sorted(node.written_at)
        for first, after in zip(times, times[PER_PERIOD:], strict=False):
            assert after - first >= PERIOD_S


# ---- claims ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peers", [1, 3, 50])
def test_an_outbox_of_50_drains_at_the_allowed_rate_without_a_penalty(peers: int) -> None:
    world = World(peers)
    node = Node(world, Trouble())
    outbox = Outbox(world, node, "phone")
    for n in range(50):
        outbox.write(UserId(f"peer{n % peers}"))
    start = world.now
    world.run(60)
    check(node, [outbox])
    assert len(node.log) == 50
    # 10 at once and 10 more at the end of each period; what a period loses is the way there and back.
    assert 20.0 <= max(node.written_at) - start < 21.0
    assert "rate_limited" in outbox.codes


def test_a_resend_of_50_that_are_all_known_costs_nothing() -> None:
    world = World(1)
    node = Node(world, Trouble())
    outbox = Outbox(world, node, "phone")
    for _ in range(50):
        outbox.write(UserId("bob"))
    node.log = [(UserId("bob"), cid) for cid in outbox.wrote[UserId("bob")]]  # all of them were done before the reconnect
    start = world.now
    world.run(1)
    assert outbox.waiting == 0
    assert not outbox.codes
    assert world.now - start < 0.5
    assert node.user.window.wait(world.now) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_two_devices_that_do_not_know_of_each_other_are_not_punished(seed: int) -> None:
    world = World(seed)
    node = Node(world, Trouble(delay_s=0.2))
    outboxes = [Outbox(world, node, name) for name in ("phone", "laptop")]
    for outbox in outboxes:
        for n in range(25):
            world.at(world.now + world.random.uniform(0, 8), lambda outbox=outbox, n=n: outbox.write(UserId(f"peer{n % 2}")))  # type: ignore[misc]
    world.run(120)
    check(node, outboxes)


troubles = st.builds(
    Trouble,
    gate_s=st.sampled_from([0.0, 0.005, 0.04]),
    gate_max=st.sampled_from([2, 10, 10_000]),
    silences=st.sampled_from([0.0, 0.0, 0.05, 0.5]),
    outages=st.sampled_from([0.0, 0.1, 0.5]),
    halves=st.sampled_from([0.0, 0.5]),
    queue_max=st.sampled_from([3, 20, 10_000]),
    rows_max=st.sampled_from([1, 2, 5, 256]),
    frames_per_s=st.sampled_from([20.0, 1e6]),
    frames_burst=st.sampled_from([5, 40, 10_000]),
    delay_s=st.sampled_from([0.001, 0.02, 0.3]),
    commit_s=st.sampled_from([0.002, 0.05, 0.5]),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), troubles, st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.0, 2.0]))
def test_whatever_goes_wrong_the_order_holds_and_everything_gets_through(
    seed: int, trouble: Trouble, devices: int, peers: int, spread_s: float
) -> None:
    world = World(seed)
    node = Node(world, trouble)
    outboxes = [Outbox(world, node, f"device{n}") for n in range(devices)]
    for outbox in outboxes:
        for _ in range(20):
            world.at(
                world.now + world.random.uniform(0, spread_s),
                lambda outbox=outbox: outbox.write(UserId(f"peer{world.random.randrange(peers)}")),  # type: ignore[misc]
            )
    world.run(600)
    check(node, outboxes, exact_rate=not trouble.outages)


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 2**32), troubles, st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.0, 2.0]))
def test_over_nodes_that_share_their_limits_too(seed: int, trouble: Trouble, nodes: int, devices: int, peers: int, spread_s: float) -> None:
    """With a gate before the lane, and blocks that arise while entries wait there."""
    world = World(seed)
    redis = Model()
    first = Node(world, trouble, redis)
    all_nodes = [first, *(Node(world, trouble, redis, first) for _ in range(nodes - 1))]
    outboxes = [Outbox(world, node, f"device{n}") for node in all_nodes for n in range(devices)]
    for outbox in outboxes:
        for _ in range(20):
            world.at(
                world.now + world.random.uniform(0, spread_s),
                lambda outbox=outbox: outbox.write(UserId(f"peer{world.random.randrange(peers)}")),  # type: ignore[misc]
            )
    world.run(900)
    for node in all_nodes:
        assert not len(node.gate)
        check(node, outboxes, exact_rate=False)
    if not trouble.silences:
        # By Redis's clock; what an outage left in the log though it was said to have failed was given back.
        takes = redis.states[ALICE].takes
        assert most_in_any(takes, PERIOD_S * US) <= PER_PERIOD
        if not trouble.outages:
            assert len(takes) == len(first.log), "each entry has its slot, and no slot was lost"


def test_a_client_that_does_not_wait_gets_longer_waits_and_is_closed() -> None:
    world = World(1)
    node = Node(world, Trouble(delay_s=0.001))

    class Hasty(Outbox):
        def read(self, id: int, error: errors.Refused | None) -> None:
            peer, cid = self.of.pop(id)
            if error is not None:
                world.at(world.now + 0.2, lambda: self.push(peer, cid))

    outbox = Hasty(world, node, "phone")
    for _ in range(12):
        outbox.write(UserId("bob"))
    world.run(30)
    assert node.ended == [CloseCode.RATE_LIMITED]
    assert len(node.log) == 10
