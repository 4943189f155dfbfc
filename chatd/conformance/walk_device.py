"""A device of a random walk: one connection after the other, and the rules that each must keep.

    device.connect(...)      says hello, takes the welcome, fetches what the welcome does not bring
    device.ask(frame)        a request and its reply; `post` does not wait
    device.cut()             ends the connection as a bad network does

It judges what can be judged as it arrives: order, each entry once, cursors that only rise. What a
frame says is judged by the walk, which knows what was sent.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from websockets.exceptions import ConnectionClosed

from chatd.conformance.launch import ServerPlace
from chatd.conformance.server_vectors import OK_SCHEMAS, WireLink, dial, whole_welcome
from chatd.conformance.values import Frame, Mismatch, as_frame, as_frames, as_int, as_text

PAGE: int = 100  # of history, where a conversation is fetched
MAKES_ENTRY: tuple[str, ...] = ("send", "edit", "delete")


@dataclass(slots=True)
class Asked:
    """A request on its way."""

    frame: Frame
    answer: asyncio.Future[Frame]


class WalkDevice:
    """`held`: by conversation, the highest seq without holes. `shown`: the entries, by seq.

    `given`: for each conversation the frames that the walk has not judged yet. `checks` counts what
    was judged, by rule.
    """

    def __init__(self, place: ServerPlace, user: str, name: str, checks: Counter[str], wait_s: float) -> None:
        self.user, self.name = user, name
        self.away = False
        self.held: dict[str, int] = {}
        self.shown: dict[str, dict[int, Frame]] = {}
        self.given: list[tuple[str, Frame]] = []
        self.judged: list[tuple[str, Frame]] = []  # all frames, by the schema that each must fit
        self.cursors: dict[tuple[str, str], tuple[int, int]] = {}  # (c, user) -> delivered, read
        self.statuses: dict[str, tuple[str, int]] = {}  # user -> state, version
        self.outbox: list[Frame] = []  # requests whose answer was lost, in order
        self.welcome: Frame = {}
        self._place = place
        self._checks = checks
        self._wait_s = wait_s
        self._link: WireLink | None = None
        self._reading: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._asked: dict[int, Asked] = {}
        self._paging: dict[str, list[Frame]] = {}  # live entries of conversations that are being fetched
        self._problem: Mismatch | None = None

    @property
    def is_connected(self) -> bool:
        return self._link is not None

    def __str__(self) -> str:
        return f"{self.user}/{self.name}"

    # ---- connections -----------------------------------------------------------------------------

    async def connect(self, watch: list[str], how: str) -> Frame:
        """`how`: `mark` (with cursors and since), `cursors`, or `fresh` (as a new device)."""
        if how == "fresh":
            self.held, self.shown, self.cursors, self.given = {}, {}, {}, []
        hello: Frame = {"t": "hello", "v": 1, "device": self.name, "token": self._place.token(self.user, {})}
        hello |= {"watch": list(watch)}
        if how != "fresh" and self.welcome:
            hello |= {"cursors": dict(self.held), "epoch": self.welcome["epoch"]}
            hello |= {"since": self.welcome["since"]} if how == "mark" else {}
        link = WireLink(await dial(self._place.url), self._wait_s)
        id, request = link.request(hello)
        await link.ws.send(json.dumps(request))
        welcome = await whole_welcome(link, id)
        if welcome["t"] != "welcome":
            raise Mismatch(f"hello is answered by welcome: {self} got {welcome}")
        self.judged += [("welcome", frame) for frame in link.arrived if frame["t"] == "welcome"]
        known = set(self.held) if how != "fresh" else None
        self._link, self.away, self._asked, self._paging = link, False, {}, {}
        self.statuses = {as_text(one["user"]): _status(one) for one in as_frames(welcome["presence"])}
        self.welcome = welcome
        fetched = self._listed(as_frames(welcome["conversations"]), known)
        for frame in link.pushes:
            self._take(frame)
        self._reading = asyncio.create_task(self._read(link))
        for c in fetched:
            await self._fetch(c)
        return welcome

    def _listed(self, items: list[Frame], known: set[str] | None) -> list[str]:
        """Where each conversation starts; gives those that have to be fetched."""
        fetched = []
        for item in items:
            c, head = as_text(item["c"]), as_int(item["head"])
            self.cursors[c, self.user] = as_int(item["delivered"]), as_int(item["read"])
            if item["open"]:
                self.cursors[c, as_text(item["peer"])] = as_int(item["peer_delivered"]), as_int(item["peer_read"])
            if known is None:
                self.held[c] = head  # the connection starts at head + 1
            elif c not in known or item.get("page"):
                self.held.setdefault(c, 0)
                self._paging[c] = []
                fetched.append(c)
        return fetched

    async def _fetch(self, c: str) -> None:
        """By `history`, as there is more than the connection brings."""
        while True:
            page = await self.ask({"t": "history", "c": c, "after": self.held[c], "limit": PAGE})
            for entry in as_frames(page["entries"]):
                self._show(c, entry)
            if not page["more"]:
                break
        for frame in self._paging.pop(c):
            if as_int(frame["seq"]) > self.held[c]:
                self._show(c, frame)

    def cut(self) -> None:
        """End the connection; what was asked and not answered goes to the outbox."""
        if self._link is not None:
            self._link.ws.transport.abort()
        if self._reading is not None:
            self._reading.cancel()
        self.outbox += [one.frame for one in self._asked.values() if one.frame["t"] in MAKES_ENTRY]
        for one in self._asked.values():
            one.answer.cancel()
        self._link, self._reading, self._asked = None, None, {}

    # ---- requests --------------------------------------------------------------------------------

    async def post(self, frame: Frame) -> asyncio.Future[Frame]:
        """Send a request and do not wait."""
        if self._link is None:
            raise Mismatch(f"{self} is not connected")
        id, request = self._link.request(frame)
        one = Asked(frame, asyncio.get_running_loop().create_future())
        self._asked[id] = one
        await self._link.ws.send(json.dumps(request))
        return one.answer

    async def ask(self, frame: Frame) -> Frame:
        """A request and its reply. Raises Mismatch if a rule is broken, or nothing arrives."""
        answer = await self.post(frame)
        await self.until(answer.done, lambda: f"a request is answered: {frame}")
        return answer.result()

    async def until(self, is_so: Callable[[], bool], rule: Callable[[], str]) -> None:
        """Wait for something that frames bring. Raises Mismatch with the rule."""
        try:
            async with asyncio.timeout(self._wait_s):
                while not is_so():
                    self.check()
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise Mismatch(f"{rule()}; {self} waited for {self._wait_s:g} s") from None
        self.check()

    def check(self) -> None:
        """Raise the first broken rule."""
        if self._problem is not None:
            raise self._problem

    # ---- frames ----------------------------------------------------------------------------------

    async def _read(self, link: WireLink) -> None:
        try:
            while True:
                self._take(as_frame(json.loads(await link.ws.recv())))
        except ConnectionClosed as e:
            self._problem = self._problem or Mismatch(f"a connection stays: that of {self} ended, {e}")
        except (Mismatch, ValueError, KeyError) as e:
            self._problem = self._problem or (e if isinstance(e, Mismatch) else Mismatch(f"{self}: {e!r}"))
        self._news.set()

    def _take(self, frame: Frame) -> None:
        t = frame["t"]
        if t != "ok":  # which of its schemas an `ok` must fit depends on its request
            self.judged.append((as_text(t), frame))
        match t:
            case "entry":
                self._entry(as_text(frame["c"]), frame)
            case "receipt":
                self._receipt(as_text(frame["c"]), as_text(frame["from"]), frame)
            case "presence":
                self._presence(as_text(frame["user"]), *_status(frame))
            case "ok" | "err" | "pong" if frame["id"] in self._asked:
                self._answered(self._asked.pop(as_int(frame["id"])), frame)
        self._news.set()

    def _answered(self, one: Asked, frame: Frame) -> None:
        if frame["t"] == "ok":
            self.judged.append((OK_SCHEMAS.get(as_text(one.frame["t"]), "ok"), frame))
        if frame["t"] == "ok" and one.frame["t"] in MAKES_ENTRY and not frame.get("dup"):
            kind = "message" if one.frame["t"] == "send" else one.frame["t"]  # `ok` takes the entry's place
            own = {**one.frame, "t": "entry", "seq": frame["seq"], "ts": frame["ts"], "from": self.user, "kind": kind}
            self._entry(as_text(frame["c"]), own)
        if frame["t"] == "ok" and one.frame["t"] in ("ack", "read"):
            self._receipt(as_text(frame["c"]), self.user, frame)
        if not one.answer.done():
            one.answer.set_result(frame)

    def _entry(self, c: str, frame: Frame) -> None:
        if c in self._paging:
            self._paging[c].append(frame)
        else:
            self._show(c, frame)

    def _show(self, c: str, frame: Frame) -> None:
        seq, held = as_int(frame["seq"]), self.held.get(c, 0)
        if seq <= held:
            raise Mismatch(f"each entry once, in order: {self} holds {c} up to {held}, and got {frame}")
        if seq > held + 1:
            raise Mismatch(f"no entry is left out: {self} holds {c} up to {held}, and got {frame}")
        self._checks["order"] += 1
        self.held[c] = seq
        self.shown.setdefault(c, {})[seq] = frame
        self.given.append((c, frame))

    def _receipt(self, c: str, user: str, frame: Frame) -> None:
        now = as_int(frame["delivered"]), as_int(frame["read"])
        before = self.cursors.get((c, user), (0, 0))
        if now[0] < before[0] or now[1] < before[1]:
            raise Mismatch(f"cursors only rise: {self} had {before} of {user} in {c}, and got {frame}")
        self._checks["cursors"] += 1
        self.cursors[c, user] = now

    def _presence(self, user: str, state: str, v: int) -> None:
        """A higher version replaces a lower one; a push that is held back may arrive after it."""
        if v > self.statuses.get(user, ("", -1))[1]:
            self.statuses[user] = state, v


def _status(frame: Frame) -> tuple[str, int]:
    return as_text(frame["state"]), as_int(frame["v"])
