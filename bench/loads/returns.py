"""A reconnect storm: clients who went, got messages meanwhile, and all come back at once for what
they missed.

Client i has one conversation, with writer i modulo the number of writers. Orders: connect,
open_all, then per storm: depart, write, come_back. A client is back when it has its last missed
entry; its time counts from the start of the storm, whenever its turn to dial came.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from typing import Any, Final

from bench import contacts, wire
from bench.crowd import Crowd, Endpoint
from bench.generator import Load
from bench.latency import Latencies
from bench.ledger import Ledger
from bench.pace import Pacer

BODY_BYTES: Final = 100


class Returns(Load):
    """Users 0 ... clients-1 are the clients, then come the writers; conversation i has the ends 2i
    (the client) and 2i + 1 (its writer). With `has_contacts` the clients are those of `contacts`.
    """

    DRAIN_S = 30.0

    def __init__(
        self, endpoint: Endpoint, tag: str, seed: int, *, clients: int, writers: int, marks: bool = False,
        has_contacts: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(endpoint, tag, seed)
        self.n, self.writers = clients, writers
        names = self.names(clients + writers)
        if has_contacts:
            # The writers' names stay, too: the next run on this log makes no further conversations
            names = [contacts.name(i) for i in range(clients)] + [contacts.name(i) + "w" for i in range(writers)]
        self.crowd = Crowd(endpoint, names, self.rng)
        self.crowd.on_text = self.on_text
        self.crowd.hello = self._hello
        if marks:
            self.crowd.on_welcome = self._on_welcome
        self.ledger = Ledger(
            2 * clients, [clients + (end >> 1) % writers if end & 1 else end >> 1 for end in range(2 * clients)]
        )
        self.errors: Counter[str] = Counter()
        self._conv = [""] * clients
        self._marks = [""] * clients  # of the last welcome
        self._missing = [0] * clients  # entries that a client has still to get
        self._back_at = [math.nan] * clients

    def _hello(self, user: int) -> dict[str, Any]:
        if user >= self.n or not self._conv[user]:
            return {}
        since = {"since": self._marks[user]} if self._marks[user] else {}
        return {"epoch": self.crowd.epoch, "cursors": {self._conv[user]: self.ledger.last_seq(2 * user)}, **since}

    def _on_welcome(self, user: int, payload: bytes) -> None:
        if user < self.n and (mark := wire.mark(payload)) is not None:
            self._marks[user] = mark

    # ---- orders ----------------------------------------------------------------------------------

    async def connect(self) -> None:
        await self.crowd.connect()

    async def open_all(self, rate: float) -> None:
        """A message each way: the conversations are open, and the clients know their names."""
        await self._send([2 * i + 1 for i in range(self.n)] + [2 * i for i in range(self.n)], rate)
        self._lost_check()

    def depart(self) -> None:
        self.crowd.leave(range(self.n))

    async def write(self, unread: int, rate: float) -> None:
        """`unread` messages to each client, while none is there."""
        self._missing = [unread] * self.n
        ends = [2 * i + 1 for i in range(self.n)] * unread
        await self._send(ends, rate, deliver=False)

    async def come_back(self, at_once: int, at: float) -> dict[str, Any]:
        """All at once; until everybody has everything, or nothing has come for the drain's time."""
        self._back_at = [math.nan] * self.n
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        started = time.perf_counter()
        late: list[float] = []
        ticking = asyncio.ensure_future(Pacer(100, 10**9, lambda i, due: late.append(time.perf_counter() - due)).run())
        took = await self.crowd.connect(at_once, range(self.n))
        until = time.perf_counter() + self.drain_s
        while any(self._missing) and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        ticking.cancel()
        back = [at - started if not math.isnan(at) else math.inf for at in self._back_at]
        return {
            "hello": Latencies(took).text(), "back": Latencies(back).text(), "lag": Latencies(late).text(),
            "seconds": max((b for b in back if math.isfinite(b)), default=0.0), "missing": sum(self._missing),
        }  # fmt: skip

    def leave(self) -> None:
        self.crowd.leave()

    def facts(self) -> dict[str, Any]:
        """Over the whole run."""
        whole = self.ledger.account(0, self.ledger.n)
        return {
            "lost": whole.lost,
            "duplicated": whole.duplicated,
            "reordered": whole.reordered,
            "stray": whole.stray,
            "errors": dict(self.errors),
            "dropped": dict(self.crowd.dropped),
        }

    # ---- the rest --------------------------------------------------------------------------------

    async def _send(self, ends: list[int], rate: float, deliver: bool = True) -> None:
        ledger, first = self.ledger, self.ledger.n
        ledger.extend(ends)
        names, run, rng = self.crowd.names, self.endpoint.run, self.rng

        def fire(i: int, due: float) -> None:
            k, end = first + i, ends[i]
            client = self.n + (end >> 1) % self.writers if end & 1 else end >> 1
            peer = end >> 1 if end & 1 else self.n + (end >> 1) % self.writers
            ledger.due_at[k] = ledger.sent_at[k] = due
            self.crowd.clients[client].write(wire.message(k, k + 2, names[peer], run, BODY_BYTES, rng.getrandbits(32)))

        await Pacer(rate, len(ends), fire).run()
        until, n = time.perf_counter() + self.drain_s, ledger.n
        while (ledger.acks < n or (deliver and ledger.deliveries < n)) and time.perf_counter() < until:
            await asyncio.sleep(0.01)

    def _lost_check(self) -> None:
        if not all(self._conv) or self.ledger.account(0, self.ledger.n).lost:
            raise ConnectionError(f"the first messages did not come through, errors {dict(self.errors)}")

    def on_text(self, user: int, payload: bytes, at: float) -> None:
        if (ok := wire.read_ok(payload)) is not None:
            self.ledger.acked(user, ok[0] - 2, ok[1], at, ok[2])
        elif (entry := wire.read_entry(payload)) is not None:
            if self.ledger.delivered(user, entry[0], entry[1], at) and user < self.n:
                self._got(user, payload, at)
        else:
            frame = json.loads(payload)
            self.errors[frame["code"] if frame["t"] == "err" else "unexpected " + frame["t"]] += 1

    def _got(self, user: int, payload: bytes, at: float) -> None:
        if not self._conv[user]:
            self._conv[user] = wire.conversation(payload) or ""
        if self._missing[user]:
            self._missing[user] -= 1
            if not self._missing[user]:
                self._back_at[user] = at


LOAD = Returns
