"""The server that a walk plays to a client: it keeps chatd.v1, over lines and answers that fail.

    server = PlayedServer(random.Random("1/walk 2/faults"))
    async with server.listening() as url: ...
    server.says("bob", "hi")        somebody else's client sends
    server.cut(), server.drain()    the line ends

What befalls a request is drawn as it arrives: it is answered; the line is cut before it is stored,
or after, without a word; it is refused for a while, stored or not; it is refused for good. A cut
makes a client wait longer each time, so there are only `cuts_left` of them. `faults` false: nothing
befalls anybody any more. `broken` has the rules that the client broke. It is not built from
`chatd.client.testing`: the kit judges the SDK that ships with that, so a mistake that both share
would be found by neither (docs/decisions/0051).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from chatd.conformance.client_vectors import WELCOME, courtesy
from chatd.conformance.log_model import Line
from chatd.conformance.played_link import PlayedLink
from chatd.conformance.played_log import ALICE, EPOCH, PlayedLog
from chatd.conformance.server_vectors import SUBPROTOCOL
from chatd.conformance.values import Frame, as_frame, as_int

PEERS: Final = {"bob": "12", "carol": "34"}
RESYNC_MAX: Final = 4  # entries of a conversation that a welcome brings; more are left to history
PAGE_MAX: Final = 3  # entries of a page
CUTS: Final = 4  # of a walk: the waits after them add up to some 4 s at most
RETRY_MS: Final = (10, 60)  # least and most
LAGS: Final = 0.7  # of the refusals: what follows leaves late, so that the client tries again before it has it
LAG_S: Final = 0.15
CODES: Final = (1001, 1011, 1012, 4006, 4007)  # after each of them a client comes back
FATES: Final = {  # of a request, and how often
    "answered": 12, "cut": 1, "stored and cut": 3, "overloaded": 1, "unavailable": 1, "stored and unavailable": 1,
    "rate_limited": 1, "refused": 1,
}  # fmt: skip
CUTTING: Final = ("cut", "stored and cut")


class PlayedServer:
    """`wishes`: what the client asked for that was stored, as (peer, kind, ref, body), in order."""

    def __init__(self, rng: random.Random) -> None:
        self.logs = {peer: PlayedLog(c, peer) for peer, c in PEERS.items()}
        self.faults = False
        self.cuts_left = CUTS
        self.broken: list[str] = []
        self.welcomed = asyncio.Event()  # somebody is connected
        self.checks: Counter[str] = Counter()
        self.wishes: list[tuple[str, str, int, str | None]] = []
        self.refused: set[tuple[str, str, int, str | None]] = set()
        self._rng = rng
        self._link: PlayedLink | None = None
        self._count = 0  # entries of all logs
        self._said: dict[str, Frame] = {}  # by cid: the request as it arrived first
        self._unknown: set[str] = set()  # cids whose outcome the client cannot know

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Its URL, while it takes connections."""
        protocols = [Subprotocol(SUBPROTOCOL)]
        async with serve(self._serve, "127.0.0.1", 0, subprotocols=protocols, compression=None) as server:
            (listening,) = server.sockets
            yield f"ws://127.0.0.1:{listening.getsockname()[1]}/ws"
            for connection in server.connections:
                connection.transport.abort()

    async def _serve(self, ws: ServerConnection) -> None:
        link = PlayedLink(ws)
        writing = asyncio.create_task(link.write())
        try:
            async for text in ws:
                if not link.is_over:
                    self._take(link, as_frame(json.loads(text)))
        except ConnectionClosed:
            pass
        finally:
            link.is_live, link.is_over = False, True
            if link is self._link:
                self.welcomed.clear()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    # ---- what others do --------------------------------------------------------------------------

    def says(self, sender: str, peer: str, kind: str, body: str | None, ref: int = 0) -> Line:
        """Another client's entry in the log of `peer`: the peer's, or alice's own."""
        log = self.logs[peer]
        line = self._store(log, sender, kind, body, ref, str(self._uuid()))
        self._push(log, line)
        return line

    def repeat(self, peer: str) -> None:
        """An entry comes again. A server may send too much."""
        if self._link is not None and self._link.is_live and self.logs[peer].lines:
            log = self.logs[peer]
            self._link.say({"t": "entry", "c": log.c, **log.standing(self._rng.choice(log.lines))})

    def noise(self) -> None:
        """What a later release may say."""
        if self._link is not None and self._link.is_live:
            self._link.say({"t": "confetti", "c": "12", "seq": 9_999, "body": "of no matter"})

    def cut(self) -> bool:
        """End the line, by a code or without a word. False: there is none, or no cut is left."""
        link = self._link
        if link is None or not link.is_live or not self._may_cut():
            return False
        code = self._rng.choice((None, *CODES))
        link.abort() if code is None else link.close(code)
        return True

    def drain(self) -> bool:
        """Say that it goes away, and go."""
        if self._link is None or not self._link.is_live or not self._may_cut():
            return False
        self._link.say({"t": "notice", "kind": "drain", "retry_ms": self._rng.randint(*RETRY_MS)})
        self._link.close(1012)
        return True

    def _may_cut(self) -> bool:
        if not self.faults or self.cuts_left == 0:
            return False
        self.cuts_left -= 1
        return True

    def _uuid(self) -> uuid.UUID:
        return uuid.UUID(int=self._rng.getrandbits(128), version=4)

    def _store(self, log: PlayedLog, sender: str, kind: str, body: str | None, ref: int, cid: str) -> Line:
        self._count += 1
        log.changed_at = self._count
        return log.store(sender, kind, body, ref, cid)

    def _push(self, log: PlayedLog, line: Line) -> None:
        """To alice's connection; now and then twice."""
        if self._link is not None and self._link.is_live:
            for _ in range(2 if self.faults and self._rng.random() < 0.1 else 1):
                self._link.say(log.live(line))

    # ---- what the client asks --------------------------------------------------------------------

    def _take(self, link: PlayedLink, frame: Frame) -> None:
        id = frame["id"]
        match frame["t"]:
            case "hello":
                self._hello(link, frame)
            case "send" | "edit" | "delete":
                self._entry(link, frame)
            case "skip":
                log = self._log(frame)
                if log is not None and link.blocked.get(log.peer) == frame["cid"]:
                    del link.blocked[log.peer]
                link.say({"t": "ok", "id": id})
            case "history":
                self._history(link, frame)
            case "ack" | "read":
                self._cursor(link, frame)
            case "refresh":
                link.say({"t": "ok", "id": id, "exp": WELCOME["exp"]})
            case _:
                answer = courtesy(frame)
                link.say(answer or {"t": "err", "id": id, "code": "unknown_type", "msg": "no such request"})

    def _log(self, frame: Frame) -> PlayedLog | None:
        """The log that a request names by `c` or `to`."""
        return next((log for log in self.logs.values() if frame.get("c") == log.c or frame.get("to") == log.peer), None)

    def _hello(self, link: PlayedLink, frame: Frame) -> None:
        self._link = link
        draw = self._rng.random() if self.faults else 1.0
        if draw < 0.1 and self._may_cut():
            link.abort()
            return
        if draw < 0.2 and self._may_cut():
            wait = self._rng.randint(*RETRY_MS)
            link.say({"t": "err", "id": frame["id"], "code": "overloaded", "msg": "x", "retry_ms": wait})
            link.close(4009)
            return
        cursors = as_frame(frame.get("cursors", {})) if frame.get("epoch") == EPOCH else {}
        since = int(str(frame["since"])[1:]) if "since" in frame and frame.get("epoch") == EPOCH else 0
        listed = [log for log in self.logs.values() if log.head and (log.changed_at > since or log.c in cursors)]
        behind = {log.c: log.head - as_int(cursors[log.c]) for log in listed if log.c in cursors}
        items = [log.item() | ({"page": True} if behind.get(log.c, 0) > RESYNC_MAX else {}) for log in listed]
        limits = {**as_frame(WELCOME["limits"]), "messages": 10_000, "per_ms": 1_000, "resync": RESYNC_MAX}
        head: Frame = {**WELCOME, "epoch": EPOCH, "limits": limits, "device": frame["device"]}
        page: Frame = {"t": "welcome", "id": frame["id"]}
        if len(items) > 1 and self._rng.random() < 0.5:
            link.say({**page, **head, "conversations": items[:1], "more": True})
            if draw < 0.3 and self._may_cut():
                link.close(None)
                return
            head, items = {}, items[1:]
        link.say({**page, **head, "conversations": items, "more": False, "since": f"s{self._count}"})
        link.is_live = True
        self.welcomed.set()
        for log in listed:
            if 0 < behind.get(log.c, 0) <= RESYNC_MAX:
                for line in log.lines[as_int(cursors[log.c]) :]:
                    link.say({"t": "entry", "c": log.c, **log.standing(line)})

    def _history(self, link: PlayedLink, frame: Frame) -> None:
        log = self._log(frame)
        draw = self._rng.random() if self.faults else 1.0
        if draw < 0.1 and self._may_cut():
            link.abort()
        elif draw < 0.2 and self._may_cut():  # some clients begin again with another connection
            wait = self._rng.randint(*RETRY_MS)
            link.say({"t": "err", "id": frame["id"], "code": "unavailable", "msg": "x", "retry_ms": wait})
        elif log is None or not log.head:
            link.say({"t": "err", "id": frame["id"], "code": "no_conversation", "msg": "x"})
        else:
            after, before = frame.get("after"), frame.get("before", log.head + 1)
            start = as_int(after) if after is not None else max(0, as_int(before) - 1 - PAGE_MAX)
            end = min(start + PAGE_MAX, log.head) if after is not None else as_int(before) - 1
            more = end < log.head if after is not None else start > 0
            entries = [log.standing(line) for line in log.lines[start:end]]
            keys = {"c": log.c, "entries": entries, "more": more, "head": log.head, "floor": 1}
            link.say({"t": "ok", "id": frame["id"], **keys})

    def _cursor(self, link: PlayedLink, frame: Frame) -> None:
        log, seq = self._log(frame), as_int(frame["seq"])
        if log is None or seq > log.head:
            link.say({"t": "err", "id": frame["id"], "code": "bad_seq", "field": "seq", "msg": "x"})
            return
        log.read = max(log.read, seq if frame["t"] == "read" else 0)
        log.delivered = max(log.delivered, seq, log.read)
        link.say({"t": "ok", "id": frame["id"], "c": log.c, "delivered": log.delivered, "read": log.read})

    # ---- send, edit, delete ----------------------------------------------------------------------

    def _entry(self, link: PlayedLink, frame: Frame) -> None:
        log, cid = self._log(frame), str(frame["cid"]).lower()
        if log is None:
            link.say({"t": "err", "id": frame["id"], "code": "no_conversation", "msg": "x"})
            return
        self._check_repeat(link, frame, cid, may_be_stored=cid in self._unknown or log.by_cid(cid) is not None)
        if link.blocked.get(log.peer, cid) != cid:
            link.say({"t": "err", "id": frame["id"], "code": "blocked", "msg": "x", "cid": link.blocked[log.peer]})
            return
        link.blocked.pop(log.peer, None)
        self._unknown.discard(cid)
        if (known := log.by_cid(cid)) is not None:
            link.say({"t": "ok", "id": frame["id"], "c": log.c, "seq": known.seq, "ts": known.ts, "dup": True})
            return
        fate = self._rng.choices(list(FATES), list(FATES.values()))[0] if self.faults else "answered"
        if fate in CUTTING and not self._may_cut():
            fate = "answered"
        self._befall(link, log, frame, cid, fate)

    def _check_repeat(self, link: PlayedLink, frame: Frame, cid: str, *, may_be_stored: bool) -> None:
        """A cid is one entry; a repeat says so where it may be stored, and waits its time."""
        first = self._said.setdefault(cid, frame)
        if first is frame:
            return
        self.checks["repeats"] += 1
        if any(first.get(key) != frame.get(key) for key in ("t", "body")):
            self.broken.append(f"a cid is one entry: it sent {first}, and then {frame}")
        if may_be_stored and frame.get("retry") is not True:
            self.broken.append(f"a repeat whose first may be stored says retry: {frame}")
        if asyncio.get_running_loop().time() < link.due.get(cid, 0.0):
            self.broken.append(f"a refused entry waits its retry_ms: {frame} was early")

    def _befall(self, link: PlayedLink, log: PlayedLog, frame: Frame, cid: str, fate: str) -> None:
        id, wish = frame["id"], self._wish(log, frame)
        if wish is None:
            link.say({"t": "err", "id": id, "code": "no_message", "msg": "x"})
            return
        if fate == "refused" or wish in self.refused:  # again, where the first answer was lost
            self.refused.add(wish)
            link.say({"t": "err", "id": id, "code": "refused", "msg": "x"})
            return
        line = None
        if fate == "answered" or fate.startswith("stored"):
            self.wishes.append(wish)
            line = self._store(log, ALICE, wish[1], wish[3], wish[2], cid)
        if fate in CUTTING:
            self._unknown.add(cid)
            link.abort() if self._rng.random() < 0.5 else link.close(self._rng.choice(CODES))
        elif fate == "answered" and line is not None:
            link.say({"t": "ok", "id": id, "c": log.c, "seq": line.seq, "ts": line.ts})
        else:
            self._refuse(link, log, id, cid, fate.removeprefix("stored and "))
            if line is not None:  # a server finds it in the log, and pushes it as any other
                self._push(log, line)

    def _refuse(self, link: PlayedLink, log: PlayedLog, id: object, cid: str, code: str) -> None:
        wait = self._rng.randint(*RETRY_MS)
        link.blocked[log.peer] = cid
        link.due[cid] = asyncio.get_running_loop().time() + wait / 1000
        if code == "unavailable":
            self._unknown.add(cid)
        link.say({"t": "err", "id": id, "code": code, "msg": "x", "retry_ms": wait})
        if self._rng.random() < LAGS:
            link.lag(LAG_S)

    def _wish(self, log: PlayedLog, frame: Frame) -> tuple[str, str, int, str | None] | None:
        """What it asks for; None: it names no message of its own."""
        if frame["t"] == "send":
            return log.peer, "message", 0, str(frame["body"])
        target = log.target(frame.get("ref"), frame.get("refcid"))
        if target is None or log.is_deleted(target.seq):
            return None
        return log.peer, str(frame["t"]), target.seq, str(frame["body"]) if frame["t"] == "edit" else None
