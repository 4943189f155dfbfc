"""A client's outbox and a node in simulated time: what the pipeline of sends makes of delays, losses
and crowds.

    Outbox ── requests ──► Node: Session ─► SendPipeline ─► Lane ─► Delivery ── ok, err ──► Outbox

    Node        session, pipeline (chat/send.py), admission, delivery and gap fill are the real
                ones. Modelled are time, one lane and its database, Redis where nodes share their
                limits, and the making of conversations
    Eager       an outbox that does what docs/protocol.md section 5 demands, and is not paced: all
                that it has is on its way at once
    Sdk         the one of the Python client, as that drives it

Time is a heap of events, chance comes from one seed.
"""

from __future__ import annotations

import heapq
import math
import random
from abc import ABC, abstractmethod
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import orjson

from chatd import errors, protocol
from chatd.chat.delivery import Delivery
from chatd.chat.ports import Admission, Alone, FirstSend, FirstSends, OwnCount, Rates, Windows
from chatd.chat.send import SendPipeline
from chatd.client import outbox as client_outbox
from chatd.cluster.shared_limits import RATE, read_answer, row_of
from chatd.core.admission import AdmissionQueue
from chatd.core.batch import PROBE, Batch, Item, LaneQueue, release_pending
from chatd.core.conversation import Conversation
from chatd.core.conversations import Registry
from chatd.core.effects import Throttled
from chatd.core.frame_rate import FrameRate
from chatd.core.rate_limit import FORGET_S, SharedPenalty, SharedWindow, SlidingWindow
from chatd.core.session import Session, State, User
from chatd.errors import CloseCode
from chatd.ids import Cid, ConvId, DeviceId, UserId
from chatd.metrics import Metrics
from chatd.postgres.append_answer import NO_RESULTS, Answer, First, Result, What
from chatd.protocol import MESSAGE, Send, Stored
from chatd.store import Store
from chatd.wire.frames import encode_text
from tests.limits_model import US, Model
from tests.samples import request

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from chatd.chat.presence_push import PresencePush
    from chatd.core.admission import Call

ALICE = UserId("alice")
PER_PERIOD, PERIOD_S = 10, 5.0
RATES: Final = Rates(PER_PERIOD, PERIOD_S, 8, 100)
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
    make_s: float = 0.0  # until a conversation is made, at most


class World:
    """Simulated time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1_000.0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._n = 0

    def at(self, when: float, what: Callable[[], object]) -> None:
        self._n += 1
        heapq.heappush(self._events, (max(when, self.now), self._n, what))

    def run(self, until_s: float) -> None:
        end = self.now + until_s
        while self._events and self._events[0][0] <= end:
            self.now, _, what = heapq.heappop(self._events)
            what()
            assert self._n < EVENTS_MAX, "it goes round in circles"

    def later(self, wait_s: float, what: Callable[[], object]) -> None:
        self.at(self.now + wait_s, what)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """A task, which waits for nothing: the model's database answers at once."""
        self.at(self.now, partial(_run, work))


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("the model has no loop to wait in")


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


class Error(NamedTuple):
    """An `err` as a client reads it."""

    code: str
    retry_ms: int | None
    cid: Cid | None


class Wire:
    """The node's end of a connection: what is sent there is read as a client would. Implements
    `sink.Sink`.
    """

    address = "test"
    is_paused = False

    def __init__(self, answer: Callable[[int, Error | None], None]) -> None:
        self.answer = answer
        self.session: Session
        self.closed: CloseCode | None = None

    def send(self, frame: bytes) -> None:
        if self.closed is not None:
            return
        facts = orjson.loads(frame[2 if frame[1] < 126 else 4 :])
        if facts["t"] == "ok":
            self.answer(facts["id"], None)
        elif facts["t"] == "err":
            self.answer(facts["id"], Error(facts["code"], facts.get("retry_ms"), facts.get("cid")))

    def close(self, code: int, reason: str) -> None:
        self.closed = CloseCode(code)
        self.session.end()

    async def drained(self) -> None: ...


class NoReplica:
    """Nobody need know what was read from the log."""

    def shown(self, convs: Iterable[ConvId]) -> None:
        pass


class Database:
    """The log, of all nodes. Implements as much of `Store` as the fill of gaps asks for."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.history = NoReplica()
        self.log: list[tuple[UserId, Cid]] = []
        self.written_at: list[float] = []
        self.convs: dict[UserId, ConvId] = {}
        self.lanes: Lane
        self._entries: dict[ConvId, list[Stored]] = defaultdict(list)
        self._seqs: dict[tuple[ConvId, Cid], int] = {}

    def conv(self, peer: UserId) -> ConvId:
        return self.convs.setdefault(peer, ConvId(len(self.convs) + 1))

    def head(self, conv: ConvId) -> int:
        return len(self._entries[conv])

    def write(self, peer: UserId, cid: Cid) -> int:
        """An entry of alice; gives its seq."""
        entries = self._entries[conv := self.conv(peer)]
        seq = self._seqs[conv, cid] = len(entries) + 1
        entries.append(Stored(seq, self.now_ms, 0, MESSAGE, cid, "hi", None, None, None, seq, 0))
        self.log.append((peer, cid))
        return seq

    @property
    def now_ms(self) -> int:
        return round(self.world.now * 1000)

    def append(self, batch: Batch) -> Answer:
        """As the function of that name."""
        firsts: dict[ConvId, First] = {}
        results: dict[int, Result] = {}
        for n, item in enumerate(batch.messages):
            if (seq := self._seqs.get((item.conv.id, item.cid))) is not None:
                results[n] = Result(What.DUPLICATE, seq, self.now_ms)
            elif item.flags & PROBE:
                results[n] = Result(What.LIMITED)
            else:
                seq = self.write(item.peer, item.cid)
                self.written_at.append(item.taken_at)
                firsts.setdefault(item.conv.id, First(seq, self.now_ms))
        return Answer(firsts, results, NO_RESULTS)

    async def entries_many(self, wants: Sequence[tuple[ConvId, int, int]], rows: int) -> list[tuple[ConvId, Stored]]:
        return [(conv, e) for conv, after, upto in wants for e in self._entries[conv][after:upto][:rows]]


class Lane:
    """One writer, and its database. Implements `ports.EntryLanes` and `ports.EntryLane`."""

    def __init__(self, world: World, trouble: Trouble, database: Database) -> None:
        self.world, self.trouble, self.database = world, trouble, database
        self.outcome: SendPipeline
        self.queue = LaneQueue(trouble.rows_max)
        self.busy = False
        database.lanes = self

    def under_way(self, lanes: object) -> dict[tuple[ConvId, int, str], Item]:
        """The lane answers in the turn in which it commits."""
        return {}

    def choose(self, item: Item) -> Lane:
        return self

    def submit(self, item: Item) -> bool:
        if len(self.queue) >= self.trouble.queue_max:
            return False
        item.conv.pending += 1
        self.queue.items.append(item)
        if not self.busy:
            self.busy = True
            self.world.at(self.world.now, self.write_next)
        return True

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
        chance = self.world.random
        if not batch.items:
            return
        if chance.random() < self.trouble.outages:
            if chance.random() < 0.5:
                self.database.append(batch)
            release_pending(batch.items)
            self.outcome.failed(batch.items, errors.Unavailable("away", retry_ms=100), is_unknown=True)
        else:
            answer = self.database.append(batch)
            release_pending(batch.items)
            self.outcome.committed(batch, answer, self.world.now)

    def blocked(self, items: list[Item]) -> None:
        release_pending(items)
        self.outcome.blocked(items)


class Maker:
    """Makes the conversation of first messages. Implements `ports.ConversationMaker`."""

    def __init__(self, world: World, trouble: Trouble, registry: Registry, database: Database) -> None:
        self.world, self.trouble, self.registry, self.database = world, trouble, registry, database
        self.waiting = 0
        self._firsts: dict[UserId, list[FirstSend]] = {}

    def waits(self, user: UserId, to: UserId) -> bool:
        return to in self._firsts

    def put(self, first: FirstSend, sends: FirstSends, now: float) -> None:
        to = first.request.to
        assert to is not None
        self.waiting += 1
        if to not in self._firsts:
            self._firsts[to] = []
            make_s = self.trouble.make_s
            if make_s:  # others bring it into memory before what waits goes on
                found_s = self.world.random.uniform(0, make_s)
                self.world.at(now + found_s, lambda: self.hold(to))
                make_s = self.world.random.uniform(found_s, make_s)
            self.world.at(now + make_s, lambda: self.make(to, sends))
        self._firsts[to].append(first)

    def hold(self, to: UserId) -> Conversation:
        id = self.database.conv(to)
        is_new = id not in self.registry.convs
        conv = self.registry.hold(id, ALICE, to)
        if is_new:
            conv.head = conv.na = self.database.head(id)
        return conv

    def make(self, to: UserId, sends: FirstSends) -> None:
        conv = self.hold(to)
        firsts = self._firsts.pop(to)
        self.waiting -= len(firsts)
        for first in firsts:
            if first.session.live:
                sends.made(first, conv)


class Redis:
    """Admission by all nodes' count, as `shared_limits` calls for it. Implements `ports.Admission`."""

    decides_at_once: Final = False

    def __init__(self, world: World, trouble: Trouble, model: Model) -> None:
        self.world, self.trouble, self.model = world, trouble, model
        self.queue = AdmissionQueue(trouble.gate_max, self.wake)
        self.calling = False

    def windows(self, user: UserId) -> Windows:
        penalty = SharedPenalty(RATES.strikes_max)
        window = SharedWindow(PER_PERIOD, PERIOD_S, RATE, user, self.queue, penalty)
        return Windows(window, penalty, SlidingWindow(100, 3600.0))

    def put(self, window: SlidingWindow, then: Callable[[float], None]) -> bool:
        assert isinstance(window, SharedWindow)
        return self.queue.put(window, self.world.now, then)

    async def take(self, window: SlidingWindow) -> tuple[float, float]:
        raise AssertionError("the model's maker does not ask")

    async def idle(self) -> None: ...

    def wake(self) -> None:
        if not self.calling:
            self.calling = True
            self.world.at(self.world.now, self.call)

    def call(self) -> None:
        if self.queue.idle:
            self.calling = False
            return
        call, world = self.queue.gather(), self.world
        if not call.asks:
            self.queue.decide(call, 0, [], world.now)
            self.call()
            return
        silent = world.random.random() < self.trouble.silences
        answer: list[bytes] = []
        if not silent or world.random.random() < 0.5:
            asked_at = world.now + world.random.uniform(0, self.trouble.gate_s / 2)
            world.at(asked_at, lambda: answer.append(self.ask(call)))
        if silent:
            world.at(world.now + DEADLINE_S, lambda: self.alone(call))
        else:
            half_s = self.trouble.gate_s / 2
            world.at(world.now + half_s + world.random.uniform(0, half_s), lambda: self.decide(call, answer[0]))

    def ask(self, call: Call) -> bytes:
        rows, users = orjson.dumps([row_of(ask) for ask in call.asks]), [ask.window.user for ask in call.asks]
        args = [orjson.dumps([[PER_PERIOD, PERIOD_S * US]]), rows, int(FORGET_S * US)]
        return self.model.answer(REDIS_EPOCH_US + round(self.world.now * US), users, args)

    def decide(self, call: Call, answer: bytes) -> None:
        mark, rows = read_answer(answer, len(call.asks))
        self.queue.decide(call, mark, rows, self.world.now)
        self.call()

    def alone(self, call: Call) -> None:
        self.queue.alone(call)
        self.calling = False
        self.world.at(self.world.now + 1.0, self.queue.back)


class NoLog:
    """Implements `ports.SendLog`."""

    def limit_hit(self, item: Item, now: float) -> None: ...
    def refused(self, item: Item, error: errors.Refused) -> None: ...
    def bug(self, user: UserId, error: Exception) -> None:
        raise error


class Node:
    """One node with one user, and one lane. With `redis` its limits are shared, with `beside` the
    database is another node's, too.
    """

    def __init__(self, world: World, trouble: Trouble, redis: Model | None = None, beside: Node | None = None) -> None:
        self.world, self.trouble = world, trouble
        self.redis = None if redis is None else Redis(world, trouble, redis)
        admission: Admission = OwnCount(RATES, lambda: world.now) if self.redis is None else self.redis
        self.database: Database = Database(world) if beside is None else beside.database
        self.registry = Registry()
        self.user = User(ALICE, *admission.windows(ALICE))
        self.registry.add_user(self.user, world.now)
        metrics = Metrics()
        delivery = Delivery(
            self.registry, cast("Store", self.database), metrics, now=lambda: world.now, later=world.later,
            spawn=world.spawn, presence_push=cast("PresencePush", None), others=Alone(),
        )  # fmt: skip
        lane, maker = Lane(world, trouble, self.database), Maker(world, trouble, self.registry, self.database)
        self.pipeline = lane.outcome = SendPipeline(
            self.registry, lane, admission, maker, delivery, delivery.gaps.outcomes, metrics, NoLog()
        )
        self.wires: list[Wire] = []

    @property
    def log(self) -> list[tuple[UserId, Cid]]:
        return self.database.log

    @property
    def written_at(self) -> list[float]:
        """When the entries of the log took their slots of the rate."""
        return self.database.written_at

    @property
    def ended(self) -> list[CloseCode]:
        return [wire.closed for wire in self.wires if wire.closed is not None]

    def connect(self, answer: Callable[[int, Error | None], None]) -> Session:
        wire = Wire(answer)
        frames = FrameRate(self.trouble.frames_per_s, self.trouble.frames_burst)
        session = wire.session = Session(wire, frames, self.world.now)
        session.state, session.user, session.device = State.LIVE, self.user, DeviceId(f"d{len(self.wires)}")
        self.registry.attach(self.user, session.device, session)
        self.wires.append(wire)
        return session

    def receive(self, session: Session, payload: bytes) -> None:
        """As the connection and `Chat.handle` do."""
        if session.gone:
            return
        effect = session.receive(payload, self.world.now)
        assert isinstance(effect, Send | Throttled), effect
        try:
            if isinstance(effect, Throttled):
                self.pipeline.throttled(session, effect)
            else:
                self.pipeline.enter(session, effect, self.world.now)
        except errors.Refused as e:
            id = effect.request.id if isinstance(effect, Throttled) else effect.id
            session.sink.send(encode_text(protocol.err(id, e)))


class Outbox(ABC):
    """One device."""

    def __init__(self, world: World, node: Node, name: str) -> None:
        self.world, self.node, self.name = world, node, name
        self.line = Line(world, node.trouble.delay_s)
        self.session = node.connect(self._answered)
        self.wrote: dict[UserId, list[Cid]] = defaultdict(list)
        self.codes: list[str] = []
        self._asked: dict[int, tuple[UserId, Cid]] = {}
        self._last_id = 0

    def write(self, peer: UserId) -> None:
        cid = Cid(f"{len(self.wrote):08x}-0000-4000-8000-{self.world.random.getrandbits(48):012x}")
        self.wrote[peer].append(cid)
        self.add(peer, cid)

    def push(self, peer: UserId, cid: Cid, *, retry: bool) -> None:
        self._last_id += 1
        self._asked[self._last_id] = (peer, cid)
        payload = request("send", self._last_id, to=peer, cid=cid, retry=retry)
        self.line.carry(0, lambda: self.node.receive(self.session, payload))

    def _answered(self, id: int, error: Error | None) -> None:
        self.line.carry(1, lambda: self._read(id, error))

    def _read(self, id: int, error: Error | None) -> None:
        peer, cid = self._asked.pop(id)
        if error is None:
            self.done(peer, cid)
        else:
            self.codes.append(error.code)
            self.refused(peer, cid, error)

    @abstractmethod
    def add(self, peer: UserId, cid: Cid) -> None: ...

    @abstractmethod
    def done(self, peer: UserId, cid: Cid) -> None: ...

    @abstractmethod
    def refused(self, peer: UserId, cid: Cid, error: Error) -> None: ...

    @property
    @abstractmethod
    def waiting(self) -> int: ...


class Eager(Outbox):
    """A queue per conversation, sent as it is written. After a refusal it awaits what is on its way
    in that conversation, then the time that was told (of the rate: everywhere), and sends all of
    the queue again, with `retry`.
    """

    def __init__(self, world: World, node: Node, name: str) -> None:
        super().__init__(world, node, name)
        self.queues: dict[UserId, list[Cid]] = defaultdict(list)
        self._flying: dict[UserId, int] = defaultdict(int)
        self._refused: dict[UserId, float] = {}  # to be sent again from then on
        self._until = 0.0  # nothing is sent anywhere before
        self._tried: set[Cid] = set()

    def add(self, peer: UserId, cid: Cid) -> None:
        self.queues[peer].append(cid)
        self._go(peer)

    def done(self, peer: UserId, cid: Cid) -> None:
        self._flying[peer] -= 1
        self.queues[peer].remove(cid)
        self._go(peer)

    def refused(self, peer: UserId, cid: Cid, error: Error) -> None:
        self._flying[peer] -= 1
        assert cid in self.queues[peer]
        if error.retry_ms is None:
            assert error.code == "blocked"
            assert error.cid in self.queues[peer], "it waits for one that has an answer"
        until = self.world.now + (error.retry_ms or 0) / 1000
        self._refused[peer] = max(self._refused.get(peer, 0.0), until)
        if error.code == "rate_limited":
            self._until = max(self._until, until)
        self._go(peer)

    def _go(self, peer: UserId) -> None:
        """Send what there is to send, if this is the time; else once it is."""
        queue, now = self.queues[peer], self.world.now
        if peer in self._refused and self._flying[peer]:
            return
        at = max(self._until, self._refused.get(peer, 0.0))
        if at > now:
            self.world.at(at, lambda: self._go(peer))
            return
        again = self._refused.pop(peer, None) is not None
        fresh = queue if again else [cid for cid in queue if cid not in self._tried]
        for cid in fresh:
            self._flying[peer] += 1
            self.push(peer, cid, retry=cid in self._tried)
            self._tried.add(cid)

    @property
    def waiting(self) -> int:
        return sum(map(len, self.queues.values()))


class Sdk(Outbox):
    """`chatd.client.outbox`, driven as its client does."""

    def __init__(self, world: World, node: Node, name: str) -> None:
        super().__init__(world, node, name)
        self._outbox = client_outbox.Outbox()
        self._items: dict[tuple[UserId, Cid], client_outbox.Item] = {}
        self._wakes_at = math.inf

    def add(self, peer: UserId, cid: Cid) -> None:
        self._items[peer, cid] = self._outbox.add(peer, cid, "message", "text", None)
        self._pump()

    def done(self, peer: UserId, cid: Cid) -> None:
        assert self._outbox.settle(peer, cid) is not None
        self._pump()

    def refused(self, peer: UserId, cid: Cid, error: Error) -> None:
        then = self._outbox.refuse(self._items[peer, cid], error.code, error.retry_ms, error.cid, self.world.now)
        assert then is client_outbox.Then.AGAIN, (then, error)
        self._pump()

    def _pump(self) -> None:
        for item, retry in self._outbox.next(self.world.now):
            self.push(UserId(item.peer), Cid(item.cid), retry=retry)
        if (at := self._outbox.wake_at()) is not None and at < self._wakes_at:
            self._wakes_at = at
            self.world.at(at, lambda: self._wake(at))

    def _wake(self, at: float) -> None:
        if at == self._wakes_at:
            self._wakes_at = math.inf
            self._pump()

    @property
    def waiting(self) -> int:
        return self._outbox.size
