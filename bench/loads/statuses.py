"""Users who change between away and online at fixed times, and others who watch them; every push
that is due is accounted for.

`watchers=W`: each user is watched by W others (its peer u ^ 1 if W is 1, else the W nearest in a
ring). `fan=True`: user 0 alone changes, all watch it. Who watches and who is watched have both sent
once, or nothing would flow. A push carries the state alone: one that a watcher had not seen when
the next change of that user was due counts as lost.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from array import array
from collections import Counter
from itertools import pairwise
from typing import Any, Final

from bench import layout, wire
from bench.crowd import Crowd, Endpoint
from bench.generator import Load
from bench.latency import Latencies
from bench.pace import Pacer, rounds

SETTLE_S: Final = 1.0
OPENING_S_MAX: Final = 60.0
BODY_BYTES: Final = 20


class Statuses(Load):
    DRAIN_S = 3.0

    def __init__(
        self, endpoint: Endpoint, tag: str, seed: int, *, connections: int, watchers: int = 1, fan: bool = False
    ) -> None:
        super().__init__(endpoint, tag, seed)
        nodes = layout.pairs(connections // 2, len(endpoint.ports), layout.CROSS) if watchers == 1 and not fan else None
        self.crowd = Crowd(endpoint, self.names(connections), self.rng, nodes=nodes)
        self.fan = fan
        self.watchers = watchers_of(connections, watchers, fan)
        self.watched: list[list[int]] = [[] for _ in range(connections)]
        for u, several in enumerate(self.watchers):
            for w in several:
                self.watched[w].append(u)
        names = self.crowd.names
        self.crowd.hello = lambda u: {"watch": [names[w] for w in self.watched[u]]}
        self.crowd.on_text = self._on_opening
        self._user_of = {name: u for u, name in enumerate(names)}
        self._acks = 0
        self.errors: Counter[str] = Counter()

    # ---- orders ----------------------------------------------------------------------------------

    async def connect(self) -> None:
        await self.crowd.connect()

    async def open_all(self, rate: float) -> None:
        """A message each way between all who watch each other.

        Their pushes of first statuses are not counted.
        """
        names, run = self.crowd.names, self.endpoint.run
        sends = [(w, u) for u, several in enumerate(self.watchers) for w in several]
        if self.fan:
            sends += [(u, w) for w, u in sends]

        def fire(k: int, due: float) -> None:
            u, w = sends[k]
            client = self.crowd.clients[u]
            client.write(wire.message(k, client.next_id, names[w], run, BODY_BYTES, 0x5A5A5A5A))
            client.next_id += 1

        await Pacer(rate, len(sends), fire).run()
        until = time.perf_counter() + OPENING_S_MAX
        while self._acks < len(sends) and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        if self._acks < len(sends):
            raise ConnectionError(
                f"{len(sends) - self._acks} first messages were not acked, errors {dict(self.errors)}"
            )
        await asyncio.sleep(SETTLE_S)

    def prepare(self, n: int) -> None:
        self._changes = Changes(
            self.crowd,
            self.watchers,
            array("l", [0]) * n if self.fan else rounds(self.crowd.n, n, self.rng),
            self._user_of,
        )
        self.crowd.on_text = self._changes.on_text

    async def fire(self, rate: float, at: float) -> None:
        changes = self._changes
        await Pacer(rate, len(changes.who), changes.fire, start=at).run()
        until = time.perf_counter() + self.drain_s
        while changes.seen < changes.due and time.perf_counter() < until:
            await asyncio.sleep(0.01)

    def facts(self, windows: int = 1) -> dict[str, Any]:
        return self._changes.facts(windows) | {"dropped": dict(self.crowd.dropped)}

    def leave(self) -> None:
        self.crowd.leave()

    def _on_opening(self, user: int, payload: bytes, at: float) -> None:
        if wire.read_ok(payload) is not None:
            self._acks += 1
        elif payload.startswith(b'{"t":"err"'):
            self.errors[json.loads(payload)["code"]] += 1


def watchers_of(n: int, watchers: int, fan: bool) -> list[list[int]]:
    """Who watches each user. Watching is mutual, but for a fan."""
    if fan:
        return [list(range(1, n)), *([] for _ in range(n - 1))]
    if watchers == 1:
        assert n % 2 == 0
        return [[u ^ 1] for u in range(n)]
    assert watchers % 2 == 0
    assert watchers < n
    return [[(u + d) % n for d in range(-watchers // 2, watchers // 2 + 1) if d] for u in range(n)]


class Changes:
    """Who changes when, and who has seen it."""

    def __init__(self, crowd: Crowd, watchers: list[list[int]], who: array[int], user_of: dict[str, int]) -> None:
        self.crowd, self.who = crowd, who
        self._watchers, self._user_of = watchers, user_of
        self._away = [False] * crowd.n
        # User -> the change that is on its way, and who has not seen it
        self._open: dict[int, tuple[int, set[int]]] = {}
        self._seen_s: list[list[float]] = [[] for _ in who]
        self.due_at, self.sent_at = (array("d", [math.nan]) * len(who) for _ in range(2))
        self._versions: dict[tuple[int, int], int] = {}
        self.errors: Counter[str] = Counter()
        self.seen = self.due = self.reordered = self.unasked = 0

    def fire(self, i: int, due: float) -> None:
        u = self.who[i]
        self._away[u] = not self._away[u]
        self._open[u] = (i, set(self._watchers[u]))
        client = self.crowd.clients[u]
        client.write(wire.request("presence", client.next_id, 0x5A5A5A5A, state="away" if self._away[u] else "online"))
        client.next_id += 1
        self.due += len(self._watchers[u])
        self.due_at[i], self.sent_at[i] = due, time.perf_counter()

    def on_text(self, user: int, payload: bytes, at: float) -> None:
        push = wire.read_presence(payload)
        if push is None:
            if payload.startswith(b'{"t":"err"'):
                self.errors[json.loads(payload)["code"]] += 1
            return
        u, version = self._user_of[push[0]], push[2]
        if version <= self._versions.get((user, u), 0):
            self.reordered += 1
            return
        self._versions[user, u] = version
        i, missing = self._open.get(u, (-1, set()))
        if user not in missing or push[1] != ("away" if self._away[u] else "online"):
            self.unasked += 1
            return
        missing.discard(user)
        self.seen += 1
        self._seen_s[i].append(at - self.due_at[i])

    def facts(self, windows: int) -> dict[str, Any]:
        n = len(self.who)
        edges = [n * w // windows for w in range(windows + 1)]

        def seen(first: int, end: int) -> Latencies:
            found = Latencies()
            for i in range(first, end):
                found.add(self._seen_s[i])
                found.add([math.inf] * (len(self._watchers[self.who[i]]) - len(self._seen_s[i])))
            return found

        def lag(first: int, end: int) -> Latencies:
            return Latencies(self.sent_at[i] - self.due_at[i] for i in range(first, end))

        spans = list(pairwise(edges))
        return {
            "changes": n,
            "due": self.due,
            "seen": self.seen,
            "lost": self.due - self.seen,
            "reordered": self.reordered,
            "unasked": self.unasked,
            "errors": dict(self.errors),
            "presence": [seen(a, b).text() for a, b in spans],
            "lag": [lag(a, b).text() for a, b in spans],
        }


LOAD = Statuses
