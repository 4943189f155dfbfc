"""A client's outbox and a node in simulated time: what the pure parts of both make of delays,
losses and crowds.

    Outbox ── requests ──► Node (sessions, the gate, one lane, a log) ── answers ──► Outbox

    Node        does what `entering`, `quota`, `writer` and `delivery` do with the pure parts, and nothing else; the log is a list, and Redis, where
                nodes share their limits, a model
    Eager       an outbox that does what docs/protocol.md section 5 demands, and is not paced: all that it has is on its way at once
    Sdk         the one of the Python client, as that drives it

Time is a heap of events, chance comes from one seed.
"""

from __future__ import annotations

import heapq
import math
import random
from abc import ABC, abstractmethod
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple, cast

import orjson

from chatd import errors
from chatd.client import outbox as client_outbox
from chatd.cluster.shared_limits import RATE, read_answer, row_of
from chatd.core.admission import AdmissionQueue
from chatd.core.batch import PROBE, Batch, Item, LaneQueue
from chatd.core.conversation import Conversation
from chatd.core.rate_limit import FORGET_S, Penalty, SharedPenalty, SharedWindow, SlidingWindow, TokenBucket
from chatd.core.session import End, Session, State, Throttled, User, Verdict
from chatd.errors import CloseCode
from chatd.ids import Cid, ConvId, UserId
from chatd.protocol import Send
from tests.quota_model import US, Model
from tests.samples import request

if TYPE_CHECKING:
    from collections.abc import Callable

    from chatd.core.admission import Call

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
    """One node with one user, and one lane.

    With `redis` its limits are shared, with `beside` the database is another node's, too.
    """

    def __init__(self, world: World, trouble: Trouble, redis: Model | None = None, beside: Node | None = None) -> None:
        self.world, self.trouble = world, trouble
        self.redis = redis
        self.gate = AdmissionQueue(trouble.gate_max, self.wake)
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

    address = "test"
    is_paused = False

    def send(self, frame: bytes) -> None: ...
    def close(self, code: int, reason: str) -> None: ...
    async def drained(self) -> None: ...

    # ---- as `entering` does

    def receive(self, session: Session, payload: bytes) -> None:
        if session.state is State.CLOSED:
            return
        effect = session.receive(payload, self.world.now)
        if isinstance(effect, Throttled):
            assert isinstance(effect.request, Send)
            assert effect.request.to is not None
            error = errors.RateLimited("too many frames", retry_ms=effect.retry_ms)
            self.answer[session](effect.request.id, session.not_queued(effect.request.to, effect.request, error))
            return
        assert isinstance(effect, Send), effect
        assert effect.to is not None
        if (error_or_none := self.enter(session, effect, effect.to)) is not None:
            self.answer[session](effect.id, error_or_none)

    def enter(self, session: Session, entry: Send, peer: UserId) -> errors.Refused | None:
        if self.redis is None:
            verdict = session.admit(peer, entry.cid, self.world.now)
            return verdict if isinstance(verdict, errors.Blocked) else self.queued(session, entry, peer, verdict)
        resent_early = session.order.arrive(peer, entry.cid, self.world.now)
        if isinstance(resent_early, errors.Blocked):
            return resent_early
        window = cast("SharedWindow", self.user.window)
        if not self.gate.put(
            window, self.world.now, lambda came: self.through(session, entry, peer, resent_early, came)
        ):
            return session.not_queued(peer, entry, errors.Overloaded("full", retry_ms=200))
        return None

    def through(self, session: Session, entry: Send, peer: UserId, resent_early: bool, came: float) -> None:
        error = session.order.recheck(peer, entry.cid, entry.id) or self.queued(
            session, entry, peer, session.judge(peer, resent_early, came)
        )
        if error is not None:
            self.answer[session](entry.id, error)

    def queued(self, session: Session, entry: Send, peer: UserId, verdict: Verdict) -> errors.Refused | None:
        conv = self.convs.setdefault(peer, Conversation(ConvId(len(self.convs) + 1), ALICE, peer))
        item = Item.from_request(session, entry, conv, verdict)
        if len(self.queue) >= self.trouble.queue_max:
            self.free(item, give_back=True)
            return session.not_queued(peer, entry, errors.Overloaded("full", retry_ms=200))
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
            world.at(
                world.now + world.random.uniform(0, self.trouble.gate_s / 2), lambda: answer.append(self.ask(call))
            )
        if silent:
            world.at(world.now + DEADLINE_S, lambda: self.alone(call))
        else:
            world.at(
                world.now + self.trouble.gate_s / 2 + world.random.uniform(0, self.trouble.gate_s / 2),
                lambda: self.decide(call, answer[0]),
            )

    def ask(self, call: Call) -> bytes:
        assert self.redis is not None
        args = [
            orjson.dumps([[PER_PERIOD, PERIOD_S * US]]),
            orjson.dumps([row_of(ask) for ask in call.asks]),
            int(FORGET_S * US),
        ]
        return self.redis.answer(
            REDIS_EPOCH_US + round(self.world.now * US), [ask.window.user for ask in call.asks], args
        )

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
                    self.tell(
                        one, one.session.failed(one.peer, one.cid, one.id, errors.Unavailable("away", retry_ms=100))
                    )
            return
        notes = self.append(batch)
        for item, note in notes:
            for one in (item, *(item.twins or ())):
                if note == "limited":
                    self.free(one, give_back=True)
                    refused = one.session.limited(one.peer, one.cid, one.id, one.resent_early, self.world.now)
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
            self.tell(item, errors.Blocked("wait", cid=item.session.order.overtaken(item.peer, item.id)))

    def free(self, item: Item, *, give_back: bool) -> None:
        if item.flags & PROBE:
            item.session.order.probed(item.peer)
        elif give_back:
            self.user.window.give_back(item.taken_at)

    def tell(self, item: Item, error: errors.Refused | None) -> None:
        self.answer[item.session](item.id, error)


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

    def _answered(self, id: int, error: errors.Refused | None) -> None:
        self.line.carry(1, lambda: self._read(id, error))

    def _read(self, id: int, error: errors.Refused | None) -> None:
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
    def refused(self, peer: UserId, cid: Cid, error: errors.Refused) -> None: ...

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

    def refused(self, peer: UserId, cid: Cid, error: errors.Refused) -> None:
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

    def refused(self, peer: UserId, cid: Cid, error: errors.Refused) -> None:
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
