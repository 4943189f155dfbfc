"""A client for the fault tests:

`websockets`, `json` and docs/protocol.md, nothing of chatd's. It writes down everything that
happens to it.

It does what that page asks of an outbox: one queue per peer, sent in order and pipelined; on a
retryable error it waits and sends again from that entry on; after a reconnect all of the queue goes
out again with `retry`; an `ok` or an own entry takes a cid out. It keeps per conversation the
highest seq without holes and says so in `hello`; where a welcome starts a conversation further on,
it pages what lies between. Where a welcome names another epoch it drops all of that but the outbox,
whose edits and deletes name their message by its cid alone from then on. Whatever the page says
cannot happen is in `faults`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.client import dial
from tests.faults.checker import Acked, Connected, Epoch, Got, History, Sent
from tests.until import until

DIAL_S_MAX = 0.2  # between two tries; chatd's own clients are more patient
WELCOME_S_MAX = 20.0
HEAR_S_MAX = 15.0
BLOCKED_MS = 50  # from a `blocked`, which names no time, to the next try


@dataclass(slots=True)
class Waiting:
    """An entry in the outbox.

    `id`: the request it is on its way as; 0: it waits. `tried`: it went out before.
    """

    to: str
    keys: dict[str, Any]
    id: int = 0
    tried: bool = False
    moved: bool = False  # it names a message of an earlier log, which the one of now may lack


class Client:
    """One device.

    `run` is its life; `post` puts something into the outbox; `changed` is set whenever something
    came.
    """

    def __init__(self, url: str, token: str, user: str, device: str, rng: random.Random) -> None:
        self.url, self.token = url, token
        self.history = History(user, device)
        self.faults: list[str] = []
        self.have: dict[str, int] = {}
        self.outbox: dict[str, list[Waiting]] = {}
        self.mine: dict[str, list[int]] = {}  # by peer: seqs of own messages that may be changed
        self.changed = asyncio.Event()
        self.acked = 0
        self.errors: list[dict[str, Any]] = []
        self.notices: list[dict[str, Any]] = []
        self.connections = 0
        self.closes: list[int | None] = []
        self.live = asyncio.Event()
        self.watch: list[str] = []
        self.presence: dict[str, tuple[int, str]] = {}  # (v, state): newer replaces older
        self.heard_at: dict[tuple[str, int], float] = {}  # when an entry came, by the loop's clock; kept if `timed`
        self.timed = False
        self._rng = rng
        self._ws: ClientConnection | None = None
        self._last_id = 0
        self._sent: dict[int, Waiting] = {}
        self._pages: dict[int, str] = {}
        self._upto: dict[str, int] = {}  # conversations that are paged up to this seq; pushes wait in `_later`
        self._later: dict[str, list[dict[str, Any]]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._cids: dict[tuple[str, int], str] = {}  # of own messages, by peer and seq
        self._since: str | None = None
        self._epoch: str | None = None
        self.epoch_live_at = 0.0  # when it was live in the log of now for the first time, by the loop's clock
        self.ok_at: list[tuple[float, str, str]] = []  # (when, conversation, cid) of each ok
        self.sent_at: dict[str, float] = {}  # cid -> when it went out for the first time

    # ---- what the test does ----------------------------------------------------------------------

    def post(self, to: str, kind: str = "message", body: str | None = None, ref: int | None = None) -> str:
        """Put an entry into the outbox, and on its way if nothing is waited for."""
        cid = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        keys = {"t": "send" if kind == "message" else kind, "to": to, "cid": cid, "body": body, "ref": ref}
        if ref is not None:
            keys["refcid"] = self._cids.get((to, ref))
        self.history.events.append(Sent(cid, to, kind, ref, body))
        self.outbox.setdefault(to, []).append(Waiting(to, {k: v for k, v in keys.items() if v is not None}))
        self._pump(to)
        return cid

    @property
    def unsent(self) -> int:
        return sum(map(len, self.outbox.values()))

    async def until(self, holds: Callable[[], bool], within_s: float) -> None:
        """Wait for something that what comes in makes true."""
        await until(holds, within_s=within_s, changed=self.changed)

    # ---- connecting ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, and again after each end, until cancelled."""
        try:
            while True:
                with contextlib.suppress(OSError, InvalidHandshake, ConnectionClosed, TimeoutError, EOFError):
                    async with dial(self.url, ping_interval=None, open_timeout=5) as ws:
                        await self._talk(ws)
                self._lost()
                await asyncio.sleep(self._rng.uniform(0, DIAL_S_MAX))
        finally:
            self._lost()

    def _lost(self) -> None:
        if self._ws is not None:
            self.closes.append(self._ws.close_code)
        self._ws = None
        self.live.clear()
        self._sent, self._pages, self._upto, self._later = {}, {}, {}, {}
        for timer in self._timers.values():
            timer.cancel()
        self._timers = {}
        for queue in self.outbox.values():
            for waiting in queue:
                waiting.id = 0
        self.changed.set()

    async def _talk(self, ws: ClientConnection) -> None:
        self._last_id = 1
        hello: dict[str, Any] = {
            "t": "hello",
            "id": 1,
            "v": 1,
            "token": self.token,
            "device": self.history.device,
            "cursors": self.have,
        }
        if self.watch:
            hello["watch"] = self.watch
        if self._since is not None:
            hello.update(since=self._since, epoch=self._epoch)
        await ws.send(json.dumps(hello))
        async with asyncio.timeout(WELCOME_S_MAX):
            items: list[dict[str, Any]] = []
            while True:
                page = json.loads(await ws.recv())
                if page["t"] != "welcome":
                    if page["t"] == "err" and "retry_ms" in page:
                        return
                    self.faults.append(f"{page} before the welcome")
                    return
                self._of_log(page.get("epoch", self._epoch))
                for facts in page.get("presence", []):
                    self._saw(facts, snapshot=True)
                items += page["conversations"]
                if not page["more"]:
                    break
        self._ws, self._since = ws, page["since"]
        self._begin(items)
        while True:
            async with asyncio.timeout(HEAR_S_MAX):
                frame = json.loads(await ws.recv())
            self._frame(frame)
            self.changed.set()

    def _of_log(self, epoch: str | None) -> None:
        """The welcome names this log."""
        if epoch is None or epoch == self._epoch:
            return
        self.history.events.append(Epoch(epoch))
        self.epoch_live_at = 0.0
        if self._epoch is not None:
            self.have, self.mine, self._cids, self._since = {}, {}, {}, None
            for to, queue in self.outbox.items():
                self.outbox[to] = [
                    waiting for waiting in queue if "ref" not in waiting.keys or "refcid" in waiting.keys
                ]
                for waiting in self.outbox[to]:
                    waiting.moved = waiting.keys.pop("ref", None) is not None or waiting.moved
        self._epoch = epoch

    def _begin(self, items: list[dict[str, Any]]) -> None:
        """Go live: where each conversation starts, what is to be paged, and the whole outbox again."""
        self.connections += 1
        starts = dict(self.have)
        for item in items:
            c, known = item["c"], self.have.get(item["c"])
            if item.get("reset"):
                self.faults.append(f"a reset of {c}: we have {known}, the server {item['head']}")
            if known is None or item.get("page"):
                starts[c] = item["head"]
                if item["head"] > (known or 0):
                    self._upto[c] = item["head"]
                    self.have.setdefault(c, 0)
        self.history.events.append(Connected(starts))
        self.live.set()
        self.epoch_live_at = self.epoch_live_at or asyncio.get_running_loop().time()
        for c in list(self._upto):
            self._page(c)
        for to in self.outbox:
            self._pump(to)
        self.changed.set()

    # ---- frames in -------------------------------------------------------------------------------

    def _frame(self, frame: dict[str, Any]) -> None:
        t = frame["t"]
        if t == "entry":
            self._got(frame["c"], frame)
        elif t == "notice":
            self.notices.append(frame)
        elif t == "presence":
            self._saw(frame)
        elif frame.get("id") in self._pages and t == "ok":
            self._paged(self._pages.pop(frame["id"]), frame)
        elif frame.get("id") in self._pages and "retry_ms" in frame:
            asyncio.get_running_loop().call_later(frame["retry_ms"] / 1000, self._page, self._pages.pop(frame["id"]))
        elif t == "ok" and frame["id"] in self._sent:
            self._ok(frame)
        elif t == "err":
            self._err(frame)

    def _saw(self, facts: dict[str, Any], snapshot: bool = False) -> None:
        v, user = facts.get("v", 0), facts["user"]
        if snapshot or v > self.presence.get(user, (-1, ""))[0]:
            self.presence[user] = (v, facts["state"])

    def _got(self, c: str, e: dict[str, Any], paged: bool = False) -> None:
        cid = e.get("cid")
        if self.timed:
            self.heard_at[c, e["seq"]] = asyncio.get_running_loop().time()
        self.history.events.append(
            Got(c, e["seq"], e["ts"], e["from"], e["kind"], e.get("ref"), e.get("body"), cid, paged)
        )
        if cid is not None and e["from"] == self.history.user:
            self._settle(e["to"], cid, e["seq"], e["kind"])
        if paged or c not in self._upto:
            self.have[c] = max(self.have.get(c, 0), e["seq"])
        else:
            self._later.setdefault(c, []).append(e)

    def _ok(self, frame: dict[str, Any]) -> None:
        waiting = self._sent.pop(frame["id"])
        dup = bool(frame.get("dup"))
        self.history.events.append(Acked(frame["c"], frame["seq"], frame["ts"], waiting.keys["cid"], dup))
        self.acked += 1
        self.ok_at.append((asyncio.get_running_loop().time(), frame["c"], waiting.keys["cid"]))
        if not dup and frame["c"] not in self._upto:
            self.have[frame["c"]] = frame["seq"]
        elif not dup:
            self._later.setdefault(frame["c"], []).append(frame)
        kind = "message" if waiting.keys["t"] == "send" else waiting.keys["t"]
        self._settle(waiting.to, waiting.keys["cid"], frame["seq"], kind)

    def _settle(self, to: str, cid: str, seq: int, kind: str) -> None:
        queue = self.outbox.get(to, [])
        for waiting in queue:
            if waiting.keys["cid"] == cid:
                queue.remove(waiting)
                if kind == "message":
                    self.mine.setdefault(to, []).append(seq)
                    self._cids[to, seq] = cid
                return

    def _err(self, frame: dict[str, Any]) -> None:
        waiting = self._sent.pop(frame["id"], None)
        self.errors.append(frame)
        if waiting is None or waiting.id != frame["id"]:
            return  # it has gone out again since
        queue = self.outbox[waiting.to]
        if waiting not in queue:
            return  # settled by its entry meanwhile
        if "retry_ms" not in frame and frame["code"] != "blocked":
            if not (waiting.moved and frame["code"] == "no_message"):
                self.faults.append(f"{waiting.keys} got {frame}")
            queue.remove(waiting)
            return
        behind = frame["id"]
        if frame["code"] == "blocked" and frame["cid"] not in [one.keys["cid"] for one in queue]:
            # It failed with its outcome unknown, and its own entry has settled it since: the server
            # still waits for it. All that is on its way is behind it, also what has no answer yet.
            self._request({"t": "skip", "to": waiting.to, "cid": frame["cid"]})
            behind = 0
        self._hold_back(waiting.to, behind, frame.get("retry_ms", BLOCKED_MS))

    def _hold_back(self, to: str, behind: int, wait_ms: int) -> None:
        """What went out in this request or a later one is refused, or will be: it goes out again in
        order, after a wait, and nothing new before it.
        """
        for waiting in self.outbox.get(to, []):
            if waiting.id >= behind:
                waiting.id = 0
        if to not in self._timers:
            self._timers[to] = asyncio.get_running_loop().call_later(wait_ms / 1000, self._again, to)

    def _again(self, to: str) -> None:
        self._timers.pop(to, None)
        self._pump(to)

    # ---- out -------------------------------------------------------------------------------------

    def _pump(self, to: str) -> None:
        """Send what waits, in order; nothing overtakes what is waited for."""
        if self._ws is None or to in self._timers:
            return
        for waiting in self.outbox.get(to, []):
            if waiting.id:
                continue
            waiting.id = self._request(waiting.keys | ({"retry": True} if waiting.tried else {}))
            if not waiting.tried:
                self.sent_at[waiting.keys["cid"]] = asyncio.get_running_loop().time()
            waiting.tried = True
            self._sent[waiting.id] = waiting

    def _request(self, keys: dict[str, Any]) -> int:
        assert self._ws is not None
        self._last_id += 1
        # Past the library's coroutine, so that frames leave in the order of the calls.
        protocol = self._ws.protocol
        with contextlib.suppress(Exception):
            protocol.send_text(json.dumps({"id": self._last_id, **keys}).encode())
            self._ws.send_data()
        return self._last_id

    def _page(self, c: str) -> None:
        if self._ws is not None and c in self._upto:
            self._pages[self._request({"t": "history", "c": c, "after": self.have[c], "limit": 100})] = c

    def _paged(self, c: str, frame: dict[str, Any]) -> None:
        upto = self._upto.get(c)
        if upto is None:
            return
        for e in frame["entries"]:
            if self.have[c] < e["seq"] <= upto:
                self._got(c, e, paged=True)
        if self.have[c] >= upto:
            del self._upto[c]
            for e in self._later.pop(c, []):
                self.have[c] = max(self.have[c], e["seq"])
        elif frame["entries"]:
            self._page(c)
        else:
            self.faults.append(f"history of {c} after {self.have[c]} is empty, below {upto}")
            del self._upto[c]
