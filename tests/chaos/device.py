"""A device that does everything which docs/protocol.md allows, and writes down each answer that the
page does not.

    Device(Client)      outbox, resync and paging are the fault client's; here are the other requests, and how
                        connections begin and end
    Life                one connection of a device: when it said hello, was welcomed and ended, and with which code

`wanted`: it is to be connected. It dials whichever node the world names. `hop` leaves the old
connection open and silent and comes to another node, as a phone does that changes networks: the
server is to close the old one with 4004. After 4004 and 4005 it stays away until it is wanted
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.client import dial
from tests.faults.checker import Acked, Got
from tests.faults.client import Client

REPLACED: Final = 4004
TOO_MANY: Final = 4005
PAUSE_S: Final = 0.05  # between two tries, at most
READS: Final = frozenset(("history", "conversations"))


@dataclass(slots=True, eq=False)
class Life:
    """Times by the loop's clock; 0: not yet."""

    user: str
    device: str
    node: int
    hello_at: float = 0.0
    live_at: float = 0.0
    ended_at: float = 0.0
    code: int | None = None
    ours: bool = False  # the device ended it


class Device(Client):
    """`where` gives (number, URL) of a node to dial; `lives` are all connections, of all devices."""

    def __init__(
        self,
        user: str,
        device: str,
        token: str,
        rng: random.Random,
        where: Callable[[], tuple[int, str]],
        lives: list[Life],
    ) -> None:
        super().__init__("", token, user, device, rng)
        self.where, self.lives = where, lives
        self.wanted = asyncio.Event()
        self.life: Life | None = None
        self.is_alone = False  # the node: another one may be behind the one that we come from
        self.away = False
        # (conversation, user) -> cursors, the highest that was told
        self.told: dict[tuple[str, str], tuple[int, int]] = {}
        self.moved: dict[tuple[str, str], tuple[int, int]] = {}  # the same, as answered to our own requests
        self.spoke: dict[str, set[str]] = {}  # conversation -> whose messages were seen
        self.items: list[dict[str, Any]] = []  # the last list of conversations
        self.peer_of: dict[str, str] = {}
        self.watched: tuple[str, ...] = ()  # what the last answered `watch` names
        self._listed: dict[str, int] = {}  # heads of the welcome that the mark is of, and of those before it
        self._asked: dict[int, dict[str, Any]] = {}
        self._named: dict[str, int] = {}
        self._known: dict[str, int] = {}  # conversations that this connection gives from further back than we have them
        # By conversation that is being paged: what its pages have not reached
        self._held: dict[str, list[Got | Acked]] = {}
        self._talks: asyncio.Task[None] | None = None
        self._ghosts: set[asyncio.Task[None]] = set()

    @property
    def unanswered(self) -> list[dict[str, Any]]:
        return [*self._asked.values()]

    @property
    def is_up(self) -> bool:
        return self._ws is not None

    # ---- connections -----------------------------------------------------------------------------

    async def run(self) -> None:
        try:
            while True:
                await self.wanted.wait()
                number, url = self.where()
                life = Life(self.history.user, self.history.device, number)
                with contextlib.suppress(OSError, InvalidHandshake, EOFError, TimeoutError):
                    ws = await dial(url, ping_interval=None, open_timeout=5)
                    await self._live(ws, life)
                self._lost()
                await asyncio.sleep(self._rng.uniform(0, PAUSE_S))
        finally:
            self._lost()
            for ghost in self._ghosts:
                ghost.cancel()
            await asyncio.gather(*self._ghosts, return_exceptions=True)

    async def _live(self, ws: ClientConnection, life: Life) -> None:
        self.life = life
        talks = self._talks = asyncio.create_task(self._speak(ws, life))
        try:
            await asyncio.wait([talks])
        finally:
            if not talks.done():  # this device itself is at its end
                talks.cancel()
                ws.transport.abort()
                life.ours = True
            await asyncio.gather(talks, return_exceptions=True)
            self._talks = None
        if not talks.cancelled() and (error := talks.exception()) is not None:
            self.faults.append(f"{error!r} in the client")

    async def _speak(self, ws: ClientConnection, life: Life) -> None:
        """Until the connection ends, or `hop` cancels it: then it stays as a ghost."""
        try:
            await self._talk(ws)
            life.ours = life.ours or not life.ended_at
            ws.transport.abort()
        except (ConnectionClosed, TimeoutError, OSError, EOFError):
            ws.transport.abort()
        except asyncio.CancelledError:
            if not life.ours:
                ghost = asyncio.create_task(self._haunt(ws, life))
                self._ghosts.add(ghost)
                ghost.add_done_callback(self._ghosts.discard)
            raise
        self._ended(ws, life)

    def _ended(self, ws: ClientConnection, life: Life) -> None:
        life.ended_at = asyncio.get_running_loop().time()
        life.code = ws.close_code
        if life.code in (REPLACED, TOO_MANY) and life is self.life:
            self.wanted.clear()

    async def _haunt(self, ws: ClientConnection, life: Life) -> None:
        """An old connection that nobody reads for the user any more."""
        try:
            while True:
                await ws.recv()
        except (ConnectionClosed, OSError, EOFError):
            pass
        finally:
            ws.transport.abort()
            self._ended(ws, life)

    def hop(self) -> None:
        """Come to another node while the old connection is open."""
        if self._ws is not None and self._talks is not None:
            self._talks.cancel()

    def drop(self) -> None:
        """End the connection without a word, and come back."""
        if self._ws is not None and self.life is not None:
            self.life.ours = True
            self._ws.transport.abort()

    async def leave(self) -> None:
        """End the connection in peace, and stay away."""
        self.wanted.clear()
        if self._ws is not None and self.life is not None:
            self.life.ours = True
            with contextlib.suppress(ConnectionClosed, OSError, EOFError):
                await self._ws.close()

    def _lost(self) -> None:
        for waiting in self._held.values():  # they come again: what was held back was not seen. An ok was.
            self.history.events += [e._replace(dup=True) for e in waiting if isinstance(e, Acked)]
        self._held = {}
        super()._lost()
        self._asked = {}

    # ---- hello -----------------------------------------------------------------------------------

    async def _talk(self, ws: ClientConnection) -> None:
        self._last_id = 1
        hello: dict[str, Any] = {
            "t": "hello",
            "id": 1,
            "v": 1,
            "token": self.token,
            "device": self.history.device,
            **self._position(),
        }
        if self.watch:
            hello["watch"] = self.watch
        if self.away:
            hello["state"] = "away"
        self._named = hello.get("cursors", {})
        assert self.life is not None
        self.life.hello_at = asyncio.get_running_loop().time()
        self.lives.append(self.life)
        await ws.send(json.dumps(hello))
        async with asyncio.timeout(20):
            items: list[dict[str, Any]] = []
            snapshot: list[dict[str, Any]] = []
            while True:
                page = json.loads(await ws.recv())
                if page["t"] != "welcome":
                    if page["t"] != "err" or "retry_ms" not in page:
                        self.faults.append(f"{page} before the welcome")
                    return
                self._epoch = page.get("epoch", self._epoch)
                snapshot += page.get("presence", [])
                items += page["conversations"]
                if not page["more"]:
                    break
        self._ws, self._since = ws, page["since"]
        self.life.live_at = asyncio.get_running_loop().time()
        self.presence = {}
        for facts in snapshot:
            self._saw(facts, snapshot=True)
        self.watched = tuple(hello.get("watch", ()))
        self._begin(items)
        if tuple(self.watch) != self.watched:  # changed since the hello was made
            self.ask("watch", users=self.watch)
        if self.away != (hello.get("state") == "away"):
            self.ask("presence", state="away" if self.away else "online")
        while True:
            frame = json.loads(await ws.recv())
            self._frame(frame)
            self.changed.set()

    def _position(self) -> dict[str, Any]:
        """What this hello says of what the device has: all of it, or less, as the page allows."""
        what = self._rng.random()
        if what < 0.1:
            return {}
        if self._since is None or what < 0.3:
            return {"cursors": dict(self.have)}
        incomplete = {c: seq for c, seq in self.have.items() if seq < self._listed.get(c, 0)}
        if what < 0.6:
            some = {c: seq for c, seq in self.have.items() if self._rng.random() < 0.5}
            return {"cursors": {**some, **incomplete}, "since": self._since, "epoch": self._epoch}
        return {"cursors": dict(self.have), "since": self._since, "epoch": self._epoch}

    def _begin(self, items: list[dict[str, Any]]) -> None:
        listed = {item["c"] for item in items}
        # What is neither named nor listed comes from where this node is, which may be behind the
        # one that we come from: the same.
        self._known = {c: seq for c, seq in self.have.items() if c not in self._named and c not in listed}
        for item in items:
            c = item["c"]
            if c in self.have and c not in self._named and not item.get("page"):
                # One that is listed and was not named starts at head + 1, like one that is to be
                # paged
                item["page"] = True
                # Of a node that is behind the one we come from: what we have comes again, to be
                # ignored
                if item["head"] < self.have[c]:
                    self._known[c] = item["head"] = self.have[c]
            self._listed[c] = max(self._listed.get(c, 0), item["head"])
            self._took(item)
        super()._begin(items)

    def _took(self, item: dict[str, Any]) -> None:
        c, me = item["c"], self.history.user
        self.peer_of[c] = item["peer"]
        self._tell(c, me, item["delivered"], item["read"])
        self._tell(c, item["peer"], item["peer_delivered"], item["peer_read"])

    def _tell(self, c: str, user: str, delivered: int, read: int) -> None:
        old = self.told.get((c, user), (0, 0))
        self.told[c, user] = (max(old[0], delivered), max(old[1], read))

    # ---- requests --------------------------------------------------------------------------------

    def ask(self, t: str, **keys: Any) -> None:
        """Send a request if connected; its answer is judged by `_answer`."""
        if self._ws is not None:
            request = {"t": t, **keys}
            self._asked[self._request(request)] = request

    def _ask_again(self, ws: ClientConnection | None, request: dict[str, Any]) -> None:
        if ws is self._ws:
            self.ask(**request)

    def move(self, t: str, c: str) -> None:
        """`ack` or `read` up to what the device has."""
        if (seq := self.have.get(c, 0)) > 0 and c not in self._upto:
            self.ask(t, c=c, seq=self._rng.randint(max(1, seq - 3), seq))

    def look_at(self, users: list[str]) -> None:
        self.watch = users
        self.ask("watch", users=users)

    def _frame(self, frame: dict[str, Any]) -> None:
        request = self._asked.pop(frame.get("id", 0), None)
        if request is not None:
            self._answer(request, frame)
        elif frame["t"] == "receipt":
            self._tell(frame["c"], frame["from"], frame["delivered"], frame["read"])
        else:
            super()._frame(frame)

    def _answer(self, request: dict[str, Any], frame: dict[str, Any]) -> None:
        t = request["t"]
        if frame["t"] == "err":
            self._refused(request, frame)
        elif t in ("ack", "read"):
            at = (request["c"], self.history.user)
            self._tell(*at, frame["delivered"], frame["read"])
            old = self.moved.get(at, (0, 0))
            self.moved[at] = (max(old[0], request["seq"]), max(old[1], request["seq"] if t == "read" else 0))
            if frame["delivered"] < request["seq"] or (t == "read" and frame["read"] < request["seq"]):
                self.faults.append(f"{request} got {frame}")
        elif t == "watch":
            for facts in frame["presence"]:
                self._saw(facts, snapshot=True)
            if request["users"] == self.watch:  # answers may come in another order, and each is as of its own time
                self.watched = tuple(self.watch)
        elif t == "conversations":
            self.items = frame["conversations"]
            for item in self.items:
                self._took(item)
        elif t == "history":
            self._looked(request, frame)
        elif t in ("send", "edit", "delete"):
            place = next((e for e in self.history.events if isinstance(e, Acked) and e.cid == request["cid"]), None)
            if not frame.get("dup") or (
                place is not None and (place.c, place.seq, place.ts) != (frame["c"], frame["seq"], frame["ts"])
            ):
                self.faults.append(f"a retry of {place} got {frame}")

    def _looked(self, request: dict[str, Any], frame: dict[str, Any]) -> None:
        """A page of history beside the resync: an unbroken run, as the log has it."""
        entries = frame["entries"]
        if [e["seq"] for e in entries] != list(
            range(entries[0]["seq"], entries[0]["seq"] + len(entries)) if entries else []
        ):
            self.faults.append(f"{request} got seqs {[e['seq'] for e in entries]}")
        # A node that was not told in the hello how far we are may be behind the one that we come
        # from.
        if request["c"] in self._named and frame["head"] < self._named[request["c"]]:
            self.faults.append(f"{request} got a head of {frame['head']}, and {self._named[request['c']]} was named")

    def _refused(self, request: dict[str, Any], err: dict[str, Any]) -> None:
        t, code = request["t"], err["code"]
        loop = asyncio.get_running_loop()
        if "retry_ms" in err:
            if t in READS or (t == "watch" and request["users"] == self.watch):
                ws = self._ws
                loop.call_later(err["retry_ms"] / 1000, self._ask_again, ws, request)
            elif t == "send":
                # What went out behind it is refused too, and its answers may come after this skip is
                # read: a new entry that is sent in between would overtake it.
                self.ask("skip", to=request["to"], cid=request["cid"])
                self._hold_back(request["to"], err["id"], err["retry_ms"])
        elif t == "send" and code == "blocked":
            pass
        elif t == "typing" and code == "not_open":
            if len(self.spoke.get(request["c"], ())) == 2 and self.is_alone:
                self.faults.append(f"{request} got {err} although both have spoken")
        else:
            self.faults.append(f"{request} got {err}")

    # ---- what comes ------------------------------------------------------------------------------

    def _got(self, c: str, e: dict[str, Any], paged: bool = False) -> None:
        cid = e.get("cid")
        self.peer_of.setdefault(c, e["to"] if e["from"] == self.history.user else e["from"])
        if e["kind"] == "message":
            self.spoke.setdefault(c, set()).add(e["from"])
        if cid is not None and e["from"] == self.history.user:
            self._settle(e["to"], cid, e["seq"], e["kind"])
        got = Got(c, e["seq"], e["ts"], e["from"], e["kind"], e.get("ref"), e.get("body"), cid, paged)
        self._saw_entry(got, hold=not paged and c in self._upto)

    def _ok(self, frame: dict[str, Any]) -> None:
        waiting = self._sent.pop(frame["id"])
        c, t = frame["c"], waiting.keys["t"]
        self.acked += 1
        self.peer_of.setdefault(c, waiting.to)
        if t == "send":
            self.spoke.setdefault(c, set()).add(self.history.user)
        self._settle(waiting.to, waiting.keys["cid"], frame["seq"], "message" if t == "send" else t)
        ok = Acked(c, frame["seq"], frame["ts"], waiting.keys["cid"], bool(frame.get("dup")))
        self._saw_entry(ok, hold=not ok.dup and c in self._upto)

    def _saw_entry(self, what: Got | Acked, *, hold: bool) -> None:
        if isinstance(what, Got) and not what.paged and what.seq <= self._known.get(what.c, 0):
            return
        if hold:
            self._held.setdefault(what.c, []).append(what)
            return
        self.history.events.append(what)
        if isinstance(what, Got) or not what.dup:
            self.have[what.c] = max(self.have.get(what.c, 0), what.seq)

    def _paged(self, c: str, frame: dict[str, Any]) -> None:
        upto = self._upto.get(c)
        if upto is None:
            return
        before = self.have[c]
        for e in frame["entries"]:
            if self.have[c] < e["seq"] <= upto:
                self._got(c, e, paged=True)
        if self.have[c] >= upto:
            del self._upto[c]
            for one in self._held.pop(c, []):
                self._saw_entry(one, hold=False)
        elif self.have[c] > before:
            self._page(c)
        else:
            self.faults.append(f"history of {c} after {before} gives nothing, below {upto}")
            del self._upto[c]

    def acked_send(self) -> tuple[str, str] | None:
        """(peer, cid) of a message that was acked before.

        None that is on its way again: by its next request the server would take a refusal of this
        one for read, and let new entries overtake those behind it.
        """
        asked = {request.get("cid") for request in self.unanswered}
        acks = [e for e in self.history.events if isinstance(e, Acked) and e.cid not in asked]
        if not acks:
            return None
        one = self._rng.choice(acks)
        return (self.peer_of[one.c], one.cid) if one.c in self.peer_of else None
