"""Messages between pairs in an open loop, as a client would: every one accounted for, acked and
read as asked, over several devices, through reconnects.

Orders: connect, open_all, then any number of prepare + fire, then facts. A message is sent from one
of its sender's devices and is delivered when all of the peer's devices and the sender's others have
it.
"""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections import Counter
from itertools import pairwise
from typing import Any, Final

from bench import layout, wire
from bench.contacts import Contacts, Pairs, People
from bench.crowd import CONNECTING_MAX, Crowd, Endpoint
from bench.generator import Load
from bench.latency import Latencies
from bench.ledger import Ledger
from bench.pace import Pacer, weighted

AGAIN_S: Final = 0.05  # between two tries to come back
OPENING_RATE: Final = 1_000.0  # first messages a second: each makes a conversation
# Frames made beforehand, of some 250 bytes; in a longer phase each is made when it is due
READY_MADE_MAX: Final = 600_000
ID_BITS: Final = 20  # between two sends of a connection there is room for so many other requests' ids


class Messages(Load):
    """u and u ^ 1 are peers, or each has `contacts` others; `come_back`: who is cut off dials another
    node, and sends again what was not acked.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tag: str,
        seed: int,
        *,
        connections: int,
        devices: int = 1,
        hot: float = 0.0,
        burst: int = 1,
        bodies: list[list[float]] | None = None,
        ack: bool = False,
        read: float = 0.0,
        cross: float = layout.CROSS,
        contacts: int = 0,
        come_back: bool = False,
    ) -> None:
        super().__init__(endpoint, tag, seed)
        self.hot, self.burst, self.bodies, self.ack, self.read = hot, burst, bodies or [[1.0, 100, 200]], ack, read
        self.users, self.devices = connections // devices, devices
        self.people: People = Contacts(self.users, contacts) if contacts else Pairs(self.users)
        names = self.people.names if isinstance(self.people, Contacts) else self.names(self.users)
        nodes = None if contacts else layout.pairs(self.users // 2, len(endpoint.ports), cross)
        self.crowd = Crowd(endpoint, names, self.rng, devices, nodes)
        self.crowd.on_text = self.on_text
        if come_back:
            self.crowd.on_lost = self._come_back_soon
            self.crowd.hello = self._hello
        self.ledger = Ledger(len(self.people.owner), self.people.owner, devices)
        self.errors: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        # The same people may write by another load of this run: its cids differ
        self._run = endpoint.run ^ zlib.crc32(tag.encode())
        self._frames: list[bytes] = []
        self._pacer: Pacer | None = None
        self._first = self._rate_n = 0
        self._conv: list[str] = [""] * (self.ledger.ends // 2)  # by conversation; known after the first `ok`
        self._unacked: list[dict[int, None]] = [{} for _ in range(self.users)]  # messages, in the order sent
        self._returning: set[asyncio.Task[None]] = set()
        self._held: dict[int, list[int]] = {}  # connection that is away -> messages that were due meanwhile
        self._asked: dict[tuple[int, int], float] = {}  # (connection, id) of an ack or read -> when
        self._refused = 0  # of those
        self._answers = Latencies()
        self._answer_s: list[float] = []
        self._returns_s: list[float] = []
        self._shift = ID_BITS if ack or read else 0  # the ids of plain sends are as short as can be

    # ---- orders ----------------------------------------------------------------------------------

    async def connect(self, at_once: int = CONNECTING_MAX) -> int:
        return len(await self.crowd.connect(at_once))

    async def open_all(self, rate: float = OPENING_RATE) -> None:
        """Everybody's first message: it makes the conversations."""
        self.prepare(self.users, opening=True)
        await self.fire(rate, time.perf_counter() + 0.02)

    def prepare(self, n: int, opening: bool = False) -> None:
        """Make the next n messages."""
        first = self.ledger.n
        users = weighted(self.users, n, 0.0 if opening else self.hot, self.rng)
        self.ledger.extend(self.people.end(u, self.rng) for u in users)
        self._first, self._rate_n = first, n
        ready = range(first, first + n) if n <= READY_MADE_MAX else ()
        self._frames = [self._frame(k) for k in ready]

    async def fire(self, rate: float, at: float, churn_per_s: float = 0.0) -> dict[str, Any]:
        """Send what was prepared, from time `at` on; wait until all has come through or the drain is over.

        Some reconnect meanwhile.
        """
        churning = asyncio.ensure_future(self._churn(churn_per_s)) if churn_per_s else None
        self._pacer = Pacer(rate, self._rate_n, self._fire, start=at, burst=self.burst)
        await self._pacer.run()
        if churning is not None:
            churning.cancel()
            await asyncio.gather(churning, return_exceptions=True)
        until, end = time.perf_counter() + self.drain_s, self._first + self._rate_n
        while (min(self.ledger.acks, self.ledger.deliveries) < end or self._asked) and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        return self.progress()

    def progress(self) -> dict[str, Any]:
        ledger = self.ledger
        errors, dropped = dict(self.errors), dict(self.crowd.dropped)
        return {
            "sent": ledger.n,
            "acked": ledger.acks,
            "delivered": ledger.deliveries,
            "errors": errors,
            "dropped": dropped,
        }

    def leave(self) -> None:
        self.crowd.leave()

    def facts(self, windows: int = 1) -> dict[str, Any]:
        """What became of the last phase, cut into so many windows by the time due; disorder and
        losses are of all phases.
        """
        ledger, first, n = self.ledger, self._first, self._rate_n
        part, whole = ledger.account(first, n), ledger.account(0, ledger.n)
        self._answers.add(self._answer_s)
        self._answer_s.clear()
        edges = [first + n * w // windows for w in range(windows + 1)]
        spans = [(a, b - a) for a, b in pairwise(edges)]
        last = max((at for at in ledger.deliveries_at[first:] if at == at), default=0.0)
        return {
            "sent": part.sent,
            "acked": part.acked,
            "delivered": part.delivered,
            "lost": whole.lost,
            "duplicated": whole.duplicated,
            "reordered": whole.reordered,
            "stray": whole.stray,
            "errors": dict(self.errors),
            "dropped": dict(self.crowd.dropped),
            "first_due": ledger.due_at[first],
            "last_delivery": last,
            "counts": dict(self.counts),
            "unanswered": len(self._asked) + self._refused,
            "delivery": [Latencies(ledger.latencies(*span, ledger.deliveries_at)).text() for span in spans],
            "ack": [Latencies(ledger.latencies(*span, ledger.acked_at)).text() for span in spans],
            "lag": [Latencies(ledger.lags(*span)).text() for span in spans],
            "cursor": self._answers.text(),
            "return": Latencies(self._returns_s).text(),
        }

    # ---- sending ---------------------------------------------------------------------------------

    def _frame(self, k: int, retry: bool = False) -> bytes:
        peer, rng = self.people.owner[self.ledger.sender_of(k) ^ 1], self.rng
        low, high = self._body()
        return wire.message(
            k,
            k + 2 << self._shift,
            self.crowd.names[peer],
            self._run,
            rng.randint(low, high),
            rng.getrandbits(32),
            retry,
        )

    def _body(self) -> tuple[int, int]:
        """A span of lengths, of the mix."""
        point = self.rng.random() if len(self.bodies) > 1 else 0.0
        for share, low, high in self.bodies:
            if point < share:
                return int(low), int(high)
            point -= share
        return int(self.bodies[-1][1]), int(self.bodies[-1][2])  # shares that add up to a little less than 1

    def _fire(self, i: int, due: float) -> None:
        ledger, k = self.ledger, self._first + i
        conn = self.people.owner[ledger.sender_of(k)] * self.devices + ledger.device_of(k)
        ledger.due_at[k] = due
        if conn in self._held:
            self._held[conn].append(k)
            ledger.sent_at[k] = due  # the client's own wait, part of the latency; not the generator's lag
            return
        self._write(conn, k, self._frames[i] if self._frames else self._frame(k))
        ledger.sent_at[k] = time.perf_counter()

    def _write(self, conn: int, k: int, frame: bytes) -> None:
        client = self.crowd.clients[conn]
        client.next_id = (k + 2 << self._shift) + 1
        self._unacked[conn // self.devices][k] = None
        client.write(frame)

    def _cursor(self, conn: int, t: str, k: int, seq: int) -> None:
        """Of the conversation that got message k, which is the peer's."""
        client = self.crowd.clients[conn]
        self._asked[conn, client.next_id] = time.perf_counter()
        peer = self.crowd.names[self.people.owner[self.ledger.sender_of(k)]]
        client.write(wire.cursor(t, client.next_id, peer, seq, self.rng.getrandbits(32)))
        client.next_id += 1
        self.counts[t] += 1

    # ---- receiving -------------------------------------------------------------------------------

    def on_text(self, conn: int, payload: bytes, at: float) -> None:
        if self._pacer is not None and at >= self._pacer.next_due:
            self._pacer.fire_due()
        user, device = divmod(conn, self.devices)
        if (ok := wire.read_ok(payload)) is not None:
            k = (ok[0] >> self._shift) - 2
            if self.ledger.acked(user, k, ok[1], at, ok[2], device):
                c = self.ledger.sender_of(k) >> 1
                self._conv[c] = self._conv[c] or wire.conversation(payload) or ""
            self._unacked[user].pop(k, None)
        elif (entry := wire.read_entry(payload)) is not None:
            if self.ledger.delivered(user, entry[0], entry[1], at, device):
                if self.ack:
                    self._cursor(conn, "ack", *entry)
                # Spread evenly, the same in each run
                if self.read and entry[0] * 2_654_435_761 % 2**32 < self.read * 2**32:
                    self._cursor(conn, "read", *entry)
            elif self.devices == 1:
                self._unacked[user].pop(entry[0], None)  # its own entry is an ack, too
        elif (id := wire.read_cursors(payload)) is not None:
            if (asked := self._asked.pop((conn, id), None)) is not None:
                self._answer_s.append(at - asked)
        elif payload.startswith(b'{"t":"receipt"'):
            self.counts["receipt"] += 1
        else:
            self._other(conn, json.loads(payload))

    def _other(self, conn: int, frame: dict[str, Any]) -> None:
        if frame["t"] == "err":
            self.errors[frame["code"]] += 1
            if self._asked.pop((conn, frame["id"]), None) is None:
                self._unacked[conn // self.devices].pop((frame["id"] >> self._shift) - 2, None)
            else:
                self._refused += 1
        else:
            self.errors["unexpected " + frame["t"]] += 1

    # ---- leaving and coming back -----------------------------------------------------------------

    def _hello(self, user: int) -> dict[str, Any]:
        """With the user's cursors, as far as the conversations are known."""
        assert self.devices == 1, "a cursor is kept for one device"
        conv = self._conv
        cursors = {conv[e >> 1]: self.ledger.last_seq(e) for e in self.people.ends(user) if conv[e >> 1]}
        return {"epoch": self.crowd.epoch, "cursors": cursors} if cursors else {}

    async def _churn(self, per_s: float) -> None:
        """So many a second go and come back at once, each with its cursors; of those who wait for no
        ack, as only a retry would tell of that one.
        """
        self.crowd.hello = self._hello
        started, n = time.perf_counter(), 0
        try:
            while True:
                n += 1
                await asyncio.sleep(max(0.0, started + n / per_s - time.perf_counter()))
                user = self.rng.randrange(self.users)
                if not self._unacked[user] and user not in self._held and self.crowd.clients[user].live:
                    self.crowd.clients[user].leave()
                    self._come_back_soon(user)
        finally:
            await asyncio.gather(*self._returning, return_exceptions=True)

    def _come_back_soon(self, user: int) -> None:
        """What is due meanwhile is held."""
        if user in self._held:
            return  # a try of theirs was cut off
        self._held[user] = []  # now: before the task has begun it may be to send
        task = asyncio.ensure_future(self._come_back(user))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _come_back(self, user: int) -> None:
        """With other nodes: at another one, until one takes the user in."""
        started = time.perf_counter()
        for key in [key for key in self._asked if key[0] == user]:
            del self._asked[key]  # its answer will not come
        for k in self._unacked[user]:
            self.ledger.cut(k)
        while True:
            self.crowd.move(user)
            try:
                await self.crowd.dial(user)
                break
            except (OSError, TimeoutError) as e:
                self.errors[f"return: {type(e).__name__}"] += 1
                if len(self.endpoint.ports) == 1 or time.perf_counter() - started > self.drain_s:
                    return  # what it was to send is lost, and counted
            await asyncio.sleep(AGAIN_S)
        for k in list(self._unacked[user]):
            self._write(user, k, self._frame(k, retry=True))
        for k in self._held.pop(user):
            self._write(user, k, self._frame(k))
        self._returns_s.append(time.perf_counter() - started)
        self.counts["returns"] += 1


LOAD = Messages
