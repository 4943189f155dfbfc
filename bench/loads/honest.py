"""Honest users beside an attack: requests `ping` and messages between pairs in an open loop, and
newcomers who connect and say hello.

Orders: connect, open_all, then any number of fire + facts. u and u ^ 1 are peers. Latency counts
from when a thing was due. As clients do, they send again what is refused with a time to wait, and
what was refused behind it, in order.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from array import array
from collections import Counter
from typing import Any, Final

from bench import wire
from bench.crowd import Crowd, Endpoint
from bench.generator import Load
from bench.latency import Latencies
from bench.ledger import Ledger
from bench.pace import Pacer, rounds

BODY_BYTES: Final = 100
OPENING_RATE: Final = 50.0
AGAIN_S: Final = 0.05  # beyond the time that was told


class Honest(Load):
    """`users` stay, `newcomers` come and go in turns; both by name."""

    DRAIN_S = 10.0

    def __init__(self, endpoint: Endpoint, tag: str, seed: int, *, users: list[str], newcomers: list[str]) -> None:
        super().__init__(endpoint, tag, seed)
        self.crowd = Crowd(endpoint, users, self.rng)
        self.crowd.on_text = self.on_text
        self.door = Crowd(endpoint, newcomers, self.rng)
        self.ledger = Ledger(len(users))
        self.errors: Counter[str] = Counter()
        self._first = 0
        self._sends: dict[tuple[int, int], int] = {}  # (user, id) -> message
        self._refused: dict[int, set[int]] = {}  # user -> messages that are to be sent again, all together
        self._pings: dict[tuple[int, int], tuple[int, float]] = {}  # (user, id) -> which one, and when it was due
        self._ping_s: array[float] = array("d")
        self._late_s: list[float] = []
        self._come_s: list[float] = []

    # ---- orders ----------------------------------------------------------------------------------

    async def connect(self) -> None:
        await self.crowd.connect()
        await self.door.connect()
        self.door.leave()

    async def open_all(self) -> None:
        """A message of everybody's."""
        await self._send(OPENING_RATE, self.crowd.n, time.perf_counter() + 0.02)
        await self._drain()

    async def fire(self, pings: float, sends: float, comes: float, seconds: float, at: float) -> None:
        """So many a second of each; ends when all is answered, or the drain is over."""
        self._first = self.ledger.n
        self._pings.clear()
        self._ping_s = array("d", [math.inf]) * int(pings * seconds)
        self._late_s, self._come_s = [], []
        asked = rounds(self.crowd.n, len(self._ping_s), self.rng)

        def ping(i: int, due: float) -> None:
            client = self.crowd.clients[asked[i]]
            self._pings[asked[i], client.next_id] = i, due
            client.write(wire.request("ping", client.next_id, self.rng.getrandbits(32)))
            client.next_id += 1
            self._late_s.append(time.perf_counter() - due)

        await asyncio.gather(
            Pacer(pings, len(self._ping_s), ping, start=at).run(),
            self._send(sends, int(sends * seconds), at),
            self._come(comes, seconds, at),
        )
        await self._drain()

    def leave(self) -> None:
        self.crowd.leave()

    def facts(self) -> dict[str, Any]:
        """Of the last `fire`; what was lost, doubled or out of order, of all."""
        ledger, first = self.ledger, self._first
        n, whole = ledger.n - first, ledger.account(0, ledger.n)
        return {
            "lost": whole.lost,
            "duplicated": whole.duplicated,
            "reordered": whole.reordered,
            "stray": whole.stray,
            "errors": dict(self.errors),
            "dropped": dict(self.crowd.dropped),
            "ping": Latencies(self._ping_s).text(),
            "come": Latencies(self._come_s).text(),
            "ack": Latencies(ledger.latencies(first, n, ledger.acked_at)).text(),
            "unanswered": sum(map(math.isinf, self._ping_s)),
            "delivery": Latencies(ledger.latencies(first, n, ledger.deliveries_at)).text(),
            "kept_out": sum(map(math.isinf, self._come_s)),
            "lag": Latencies([*self._late_s, *ledger.lags(first, n)]).text(),
        }

    # ---- the rest --------------------------------------------------------------------------------

    async def _send(self, rate: float, n: int, at: float) -> None:
        ledger, first, crowd = self.ledger, self.ledger.n, self.crowd
        ledger.extend(rounds(crowd.n, n, self.rng))

        def fire(i: int, due: float) -> None:
            k = first + i
            self._write(k)
            ledger.due_at[k], ledger.sent_at[k] = due, time.perf_counter()

        if n:
            await Pacer(rate, n, fire, start=at).run()

    def _write(self, k: int) -> None:
        user = self.ledger.sender_of(k)
        client = self.crowd.clients[user]
        self._sends[user, client.next_id] = k
        client.write(
            wire.message(
                k, client.next_id, self.crowd.names[user ^ 1], self.endpoint.run, BODY_BYTES, self.rng.getrandbits(32)
            )
        )
        client.next_id += 1

    def _was_refused(self, user: int, frame: dict[str, Any]) -> None:
        self.errors[frame["code"]] += 1
        k = self._sends.pop((user, frame["id"]), None)
        if k is None or ("retry_ms" not in frame and frame["code"] != "blocked"):
            return
        if user not in self._refused:
            self._refused[user] = set()
            asyncio.get_running_loop().call_later(frame.get("retry_ms", 0) / 1000 + AGAIN_S, self._send_again, user)
        self._refused[user].add(k)

    def _send_again(self, user: int) -> None:
        for k in sorted(self._refused.pop(user)):
            self._write(k)

    async def _come(self, rate: float, seconds: float, at: float) -> None:
        """One after the other is due, from dialling to the welcome; one that cannot come is
        infinitely late.
        """
        coming: list[asyncio.Task[float]] = []
        for i in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, at + i / rate - time.perf_counter()))
            coming.append(asyncio.ensure_future(self._visit(i % self.door.n)))
        self._come_s = list(await asyncio.gather(*coming))

    async def _visit(self, user: int) -> float:
        try:
            async with asyncio.timeout(self.drain_s):
                return await self.door.dial(user)
        except (OSError, TimeoutError) as e:
            self.errors[f"come: {str(e)[:80] or type(e).__name__}"] += 1
            return math.inf
        finally:
            self.door.leave([user])

    async def _drain(self) -> None:
        until, ledger = time.perf_counter() + self.drain_s, self.ledger
        while (min(ledger.acks, ledger.deliveries) < ledger.n or self._pings) and time.perf_counter() < until:
            await asyncio.sleep(0.01)

    def on_text(self, user: int, payload: bytes, at: float) -> None:
        if payload.startswith(b'{"t":"pong"'):
            if (asked := self._pings.pop((user, json.loads(payload)["id"]), None)) is not None:
                self._ping_s[asked[0]] = at - asked[1]
        elif (ok := wire.read_ok(payload)) is not None:
            self.ledger.acked(user, self._sends.pop((user, ok[0]), -1), ok[1], at, ok[2])
        elif (entry := wire.read_entry(payload)) is not None:
            self.ledger.delivered(user, entry[0], entry[1], at)
        elif payload.startswith(b'{"t":"err"'):
            self._was_refused(user, json.loads(payload))


LOAD = Honest
