"""A client of chatd written from docs/protocol.md alone, with nothing but `websockets` and `json`:
the page must be enough.

It keeps what an app would: the messages of each conversation as they stand, an outbox that survives
connections, the places to resync from. Section numbers are the page's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import uuid
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

Frame = dict[str, Any]
FOR_GOOD = {1002, 1003, 1007, 1009, 4000, 4004, 4005}  # section 10: not before somebody changes something
MARGIN_S = 0.002  # a timer may be early by the clock's resolution
NEW_TOKEN = {4001, 4002}


class Outgoing:
    """One entry on its way (section 5).

    `sent`: the id of the request that is out; `tried`: it may be in the log.
    """

    def __init__(self, keys: Frame) -> None:
        self.keys = keys
        self.sent = 0
        self.tried = False
        self.result: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()


class Stranger:
    """`token(renew)` gives a token.

    `shown`: every entry in the order in which the app got it; `texts`: how messages stand.

    `patience`: the part of the page's back-off that it waits; a test that cuts the line often takes
    less than 1.
    """

    def __init__(self, url: str, token: Callable[[bool], str], device: str = "stranger", patience: float = 1.0) -> None:
        self.url, self.token, self.device, self.patience = url, token, device, patience
        self.user = self.epoch = self.since = ""
        self.known = False  # a welcome of this epoch was complete
        self.heads: dict[str, int] = {}  # conversation -> highest seq held without holes
        self.listed: dict[str, int] = {}  # conversation -> head by the last welcome that listed it
        self.shown: list[Frame] = []
        self.texts: dict[tuple[str, int], tuple[int, str | None]] = {}  # (c, seq of the message) -> (rev, body)
        self.outbox: dict[str, list[Outgoing]] = {}  # by peer, in order
        self.ended: int | None = None  # the close code that ended it for good
        self.news = asyncio.Event()
        self.live = asyncio.Event()
        self._ws: ClientConnection | None = None
        self._refused: set[str] = set()  # peers of whom something was refused for a while
        self._due: dict[str, float] = {}  # by peer: nothing goes again before
        self._out: asyncio.Queue[Frame] = asyncio.Queue()
        self._named: list[str] = []  # conversations whose cursors the hello gave
        self._held: dict[str, list[Frame]] = {}  # live entries of conversations that are being paged
        self._id = 0
        self._asked: dict[int, tuple[Frame, Outgoing | None]] = {}
        self._wait_s = self._live_at = 0.0

    # ---- for the app -----------------------------------------------------------------------------

    def send(self, to: str, body: str) -> asyncio.Future[Frame]:
        """The future has the `ok`, or the `err` that means never."""
        return self._enter(to, {"t": "send", "to": to, "body": body})

    def edit(self, to: str, ref: int, body: str) -> asyncio.Future[Frame]:
        return self._enter(to, {"t": "edit", "to": to, "ref": ref, "body": body})

    def delete(self, to: str, ref: int) -> asyncio.Future[Frame]:
        return self._enter(to, {"t": "delete", "to": to, "ref": ref})

    def _enter(self, to: str, keys: Frame) -> asyncio.Future[Frame]:
        one = Outgoing({**keys, "cid": str(uuid.uuid4())})
        self.outbox.setdefault(to, []).append(one)
        self._flush(to)
        return one.result

    def cut(self) -> None:
        """What a bad network does."""
        if self._ws is not None:
            self._ws.transport.abort()

    # ---- connections (sections 3 and 10) ---------------------------------------------------------

    async def run(self) -> None:
        """Stay connected until the server says not to come back, or until cancelled."""
        failures, renew = 0, False
        while True:
            code = await self._connect_once(renew)
            if code in FOR_GOOD or (code in NEW_TOKEN and renew and not self.live.is_set()):
                self.ended = code
                self.news.set()
                return
            renew = code in NEW_TOKEN
            if self.live.is_set() and asyncio.get_running_loop().time() - self._live_at >= 10.0:
                failures = 0
            self.live.clear()
            back_off = random.uniform(0, min(30.0, 0.25 * 2**failures))
            failures += 1
            await asyncio.sleep(max(self._wait_s, 60.0 if code == 4008 else 0.0) + back_off * self.patience)
            self._wait_s = 0.0

    async def _connect_once(self, renew: bool) -> int:
        """One connection; gives the close code, 1006 if there was none."""
        try:
            async with connect(self.url, subprotocols=["chatd.v1"], compression=None) as ws:  # type: ignore[list-item]
                self._ws, self._id, self._asked, self._held, self._out = ws, 0, {}, {}, asyncio.Queue()
                self._due.clear()
                self._refused.clear()
                writer = asyncio.create_task(self._write(ws, self._out))
                try:
                    self._post(self._hello(renew))
                    async for text in ws:
                        self._take(json.loads(text))
                finally:
                    writer.cancel()
        except ConnectionClosed:
            pass
        except OSError:
            return 1006
        finally:
            self._ws = None
            for queue in self.outbox.values():
                for one in queue:
                    one.tried, one.sent = one.tried or one.sent > 0, 0
        return ws.close_code or 1006

    @staticmethod
    async def _write(ws: ClientConnection, out: asyncio.Queue[Frame]) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await ws.send(json.dumps(await out.get()))

    def _hello(self, renew: bool) -> Frame:
        hello: Frame = {"t": "hello", "v": 1, "token": self.token(renew), "device": self.device}
        missing = [c for c, head in self.heads.items() if head < self.listed.get(c, 0)]
        self._named = (missing + [c for c in self.heads if c not in missing])[:500]
        if self.epoch:
            hello |= {"epoch": self.epoch, "cursors": {c: self.heads[c] for c in self._named}}
        if self.since and len(missing) <= 500:  # the mark holds: all that it listed is held, or named again
            hello["since"] = self.since
        return hello

    def _post(self, frame: Frame, one: Outgoing | None = None) -> None:
        self._id += 1
        frame = {**frame, "id": self._id}
        if one is not None:
            if one.tried:
                frame["retry"] = True
            one.sent = self._id
        self._asked[self._id] = (frame, one)
        self._out.put_nowait(frame)

    # ---- frames ----------------------------------------------------------------------------------

    def _take(self, frame: Frame) -> None:
        """Section 2, be liberal: whatever is not known is passed over."""
        match frame.get("t"):
            case "welcome":
                self._welcome(frame)
            case "entry":
                self._entry(frame["c"], frame)
            case "ok" | "err" if frame.get("id") in self._asked:
                request, one = self._asked.pop(frame["id"])
                if one is not None:
                    self._answered(one, frame)
                elif request["t"] == "history":
                    self._page(frame) if frame["t"] == "ok" else self.cut()
            case "notice" if frame.get("kind") == "drain":
                self._wait_s = frame["retry_ms"] / 1000
        self.news.set()

    def _welcome(self, page: Frame) -> None:
        if "user" in page:
            self.user = page["user"]
            if self.epoch not in ("", page["epoch"]):
                self.heads, self.listed, self.texts, self.known = {}, {}, {}, False
            self.epoch = page["epoch"]
        for item in page["conversations"]:
            self._listed(item, item["c"], item["head"])
        if page["more"]:
            return
        self.since, self.known = page["since"], True
        self._live_at = asyncio.get_running_loop().time()
        self.live.set()
        for peer in self.outbox:
            self._flush(peer)

    def _listed(self, item: Frame, c: str, head: int) -> None:
        """Where this conversation starts on this connection; what lies before that and is not held
        has to be paged.
        """
        if item.get("reset"):
            self.texts = {key: state for key, state in self.texts.items() if key[0] != c}
            self.heads[c] = head
        elif c not in self.heads:
            # It began since the last welcome: all of it was missed; else it is for scrolling back
            self.heads[c] = 0 if self.known else head
        self.listed[c] = head
        self.heads[c] = max(self.heads[c], item["floor"] - 1)  # what has passed retention is not to be had
        if item.get("page") or (c not in self._named and self.heads[c] < head):
            self._held[c] = []
            self._fetch(c)

    def _fetch(self, c: str) -> None:
        self._post({"t": "history", "c": c, "after": self.heads[c], "limit": 100})

    def _page(self, page: Frame) -> None:
        c = page["c"]
        self.heads[c] = max(self.heads[c], page["floor"] - 1)
        held = [] if page["more"] else self._held.pop(c)
        for entry in [*page["entries"], *held]:
            self._entry(c, entry)
        if page["more"]:
            self._fetch(c)

    def _entry(self, c: str, entry: Frame) -> None:
        """Sections 3 and 4: a seq that is held already is ignored; a jump does not happen, and if
        it does, reconnect.
        """
        seq, head = entry["seq"], self.heads.get(c, 0)
        if seq <= head:
            return
        if seq == head + 1:
            self._show(c, entry)
        elif c in self._held:
            self._held[c].append(entry)
        else:
            self.listed[c] = seq  # so that the next hello names it
            self.cut()

    def _show(self, c: str, entry: Frame) -> None:
        if "cid" in entry:
            self._settle(entry["cid"], {"t": "ok", "c": c, "seq": entry["seq"], "ts": entry["ts"]})
        self.heads[c] = entry["seq"]
        self.shown.append({**entry, "c": c})
        match entry["kind"]:
            case "message":
                self._state(c, entry["seq"], entry.get("rev", 0), entry["body"])
            case "edit" | "delete":
                self._state(c, entry["ref"], entry["seq"], entry.get("body"))

    def _state(self, c: str, ref: int, rev: int, body: str | None) -> None:
        if rev >= self.texts.get((c, ref), (-1, None))[0]:
            self.texts[(c, ref)] = (rev, body)

    # ---- the outbox (section 5) ------------------------------------------------------------------

    def _answered(self, one: Outgoing, answer: Frame) -> None:
        if answer["t"] == "ok":
            c, seq = answer["c"], answer["seq"]
            if not answer.get("dup"):  # it takes the entry's place
                kind = "message" if one.keys["t"] == "send" else one.keys["t"]
                self._entry(c, {**one.keys, "seq": seq, "ts": answer["ts"], "from": self.user, "kind": kind})
            self._settle(one.keys["cid"], answer)
            self._flush(one.keys["to"])
            return
        peer = one.keys["to"]
        one.sent, one.tried = 0, True
        if answer["code"] == "blocked":
            self._refused.add(peer)
            if all(other.keys["cid"] != answer.get("cid") for other in self.outbox[peer]):
                self._post({"t": "skip", "to": peer, "cid": answer["cid"]})
        elif "retry_ms" in answer:
            loop, wait_s = asyncio.get_running_loop(), answer["retry_ms"] / 1000
            self._refused.add(peer)
            self._due[peer] = max(self._due.get(peer, 0.0), loop.time() + wait_s)
            loop.call_later(wait_s + MARGIN_S, self._flush, peer)
        else:
            self._settle(one.keys["cid"], answer)
        self._flush(peer)

    def _flush(self, peer: str) -> None:
        """Send what waits, from the first on; not what is out. After a refusal only once its time
        has passed, and what was on its way has its answer.
        """
        if not self.live.is_set() or self._ws is None:
            return
        queue = self.outbox.get(peer, [])
        is_early = asyncio.get_running_loop().time() < self._due.get(peer, 0.0)
        if peer in self._refused and (is_early or any(one.sent for one in queue)):
            return
        self._refused.discard(peer)
        for one in queue:
            if not one.sent:
                self._post(one.keys, one)

    def _settle(self, cid: str, answer: Frame) -> None:
        for queue in self.outbox.values():
            for one in queue:
                if one.keys["cid"] == cid:
                    queue.remove(one)
                    if not one.result.done():
                        one.result.set_result(answer)
                    return
