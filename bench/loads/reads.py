"""People who scroll back: history pages at several depths, and lists of conversations, in an open
loop over a filled database.

Each request is due at a fixed time; its latency counts from then to the answer. What comes back is
checked: a page is an unbroken run of seqs that ends below where it was asked, with as many messages
as the log has there; a list has as many items as there are. A wrong answer is counted as `wrong`.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from array import array
from collections import Counter
from typing import Any, Final

from bench import wire
from bench.crowd import Crowd, Endpoint
from bench.generator import Load
from bench.latency import Latencies
from bench.pace import Pacer

PAGE: Final = 50


class Reads(Load):
    """`logs` are conversations to read: [c, reader (a place in `users`), floor, head, size]; `hub`
    (a place, too) asks for its list.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tag: str,
        seed: int,
        *,
        users: list[str],
        logs: list[list[Any]],
        depths: list[float],
        hub: int,
        hub_conversations: int,
    ) -> None:
        super().__init__(endpoint, tag, seed)
        self.crowd = Crowd(endpoint, users, self.rng)
        self.crowd.on_text = self.on_text
        sizes = sorted({log[4] for log in logs})
        # All sizes are read as often, in turns
        self._logs = [[log for log in logs if log[4] == size] for size in sizes]
        self._depths, self._hub, self._hub_n = depths, hub, hub_conversations
        self._pages: dict[int, tuple[int, int]] = {}  # request -> (before, floor)
        self._kind: list[str] = []
        self._due_at: array[float] = array("d")
        self._sent_at: array[float] = array("d")
        self._took_s: list[float] = []
        self._waiting: dict[tuple[int, int], int] = {}  # (user, id) -> request
        self._cursor: str | None = None
        self.errors: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()

    async def connect(self) -> None:
        await self.crowd.connect()

    def leave(self) -> None:
        self.crowd.leave()

    def forget(self) -> None:
        """What was measured so far was the warm-up."""
        self._pages, self._kind, self._due_at, self._sent_at, self._took_s = {}, [], array("d"), array("d"), []
        self._waiting.clear()

    async def fire(self, pages: float, lists: float, seconds: float, at: float) -> None:
        """So many pages and lists a second; each depth in turns, over random logs."""
        ends = at + seconds
        await asyncio.gather(
            self._read(pages, int(pages * seconds), at, self._page),
            self._read(lists, int(lists * seconds), at, self._list),
        )
        until = max(ends, time.perf_counter()) + self.drain_s
        while self._waiting and time.perf_counter() < until:
            await asyncio.sleep(0.01)

    async def _read(self, rate: float, n: int, at: float, ask: Any) -> None:
        if n:
            await Pacer(rate, n, ask, start=at).run()

    def _ask(self, user: int, due: float, kind: str, t: str, **keys: Any) -> None:
        client = self.crowd.clients[user]
        self._waiting[user, client.next_id] = len(self._kind)
        self._kind.append(kind)
        self._took_s.append(math.inf)
        self._due_at.append(due)
        client.write(wire.request(t, client.next_id, self.rng.getrandbits(32), **keys))
        client.next_id += 1
        self._sent_at.append(time.perf_counter())

    def _page(self, i: int, due: float) -> None:
        depth = self._depths[i % len(self._depths)]
        of_a_size = self._logs[i // len(self._depths) % len(self._logs)]
        c, reader, floor, head, size = self.rng.choice(of_a_size)
        before = page_before(floor, head, depth, self.rng)
        self._pages[len(self._kind)] = (before, floor)
        self._ask(reader, due, f"{depth:g} {size}", "history", c=c, before=before, limit=PAGE)

    def _list(self, i: int, due: float) -> None:
        """The hub's list, page by page, from the start again after the last."""
        cursor = {} if self._cursor is None else {"cursor": self._cursor}
        self._ask(self._hub, due, "list", "conversations", limit=PAGE, **cursor)

    def on_text(self, user: int, payload: bytes, at: float) -> None:
        frame = json.loads(payload)
        n = self._waiting.pop((user, frame.get("id", 0)), None)
        if frame["t"] == "err":
            self.errors[frame["code"]] += 1
        elif n is not None:
            self._took_s[n] = at - self._due_at[n]
            if self._kind[n] == "list":
                self._cursor = frame.get("cursor")
                if not 0 < len(frame["conversations"]) <= min(PAGE, self._hub_n):
                    self.wrong["list"] += 1
            else:
                self._check_page(n, frame)

    def _check_page(self, n: int, frame: dict[str, Any]) -> None:
        before, floor = self._pages.pop(n)
        seqs = [entry["seq"] for entry in frame["entries"]]
        messages = sum(entry["kind"] == "message" for entry in frame["entries"])
        whole = messages == PAGE or (seqs and seqs[0] == floor)
        if (
            not seqs
            or seqs[-1] != before - 1
            or seqs != list(range(seqs[0], before))
            or not whole
            or frame["floor"] != floor
        ):
            self.wrong["page"] += 1

    def facts(self, windows: int = 1) -> dict[str, Any]:
        kinds = sorted(set(self._kind))
        by_kind = {
            kind: Latencies(t for t, k in zip(self._took_s, self._kind, strict=True) if k == kind) for kind in kinds
        }
        first = min(self._due_at, default=0.0)
        span = max(max(self._due_at, default=0.0) - first, 1e-9) / windows
        parts: dict[tuple[bool, int], list[float]] = {
            (is_list, w): [] for is_list in (False, True) for w in range(windows)
        }
        for due, took, kind in zip(self._due_at, self._took_s, self._kind, strict=True):
            parts[kind == "list", min(windows - 1, int((due - first) / span))].append(took)
        pages, lists = ([Latencies(parts[is_list, w]) for w in range(windows)] for is_list in (False, True))
        return {
            "asked": len(self._kind),
            "unanswered": sum(map(math.isinf, self._took_s)),
            "errors": dict(self.errors),
            "wrong": sum(self.wrong.values()),
            "by_kind": {kind: found.text() for kind, found in by_kind.items()},
            "pages": [p.text() for p in pages],
            "lists": [x.text() for x in lists],
            "lag": Latencies(s - d for s, d in zip(self._sent_at, self._due_at, strict=True)).text(),
            "dropped": dict(self.crowd.dropped),
        }


def page_before(floor: int, head: int, depth: float, rng: random.Random) -> int:
    """The `before` of a page at that depth:

    0 is the newest page, 1 the oldest. Never so low that nothing is left.
    """
    span = head - floor + 1
    newest, oldest = head + 1, min(head + 1, floor + PAGE)
    at = newest - depth * (newest - oldest)
    return max(floor + 1, min(newest, int(at) + rng.randint(-1, 1) * (span > 10 * PAGE)))


LOAD = Reads
