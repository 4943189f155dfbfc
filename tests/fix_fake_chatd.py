"""A chatd in memory, for tests of clients: the contract of docs/protocol.md over real WebSockets,
and faults on demand.

`fault(session, frame)` is asked before each request is handled. It answers None (handle it), or one
of the words below, or an `err` frame without `id`. Nothing here is shared with the server's code or
with the client's: what this file and the client agree on, they agree on by the page.
tests/wire/test_fake_vectors.py holds it to the server's vectors, and lists what it cannot do.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import orjson
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from chatd.client import Client
from tests.until import until

Frame: TypeAlias = dict[str, Any]
Fault: TypeAlias = Literal["cut", "cut after", "ignore"] | Frame | None

T0 = 1_790_000_000_000
BODY_BYTES = 2048
DEADLINE_S = 20.0  # for a whole test: what hangs fails


class Refused(Exception):
    def __init__(self, code: str, **keys: Any) -> None:
        self.frame: Frame = {"t": "err", "code": code, "msg": code.replace("_", " "), **keys}


def a_seq(frame: Frame, key: str) -> int:
    if type(seq := frame.get(key)) is not int:
        raise Refused("bad_field", field=key)
    if seq < 1:
        raise Refused("bad_seq", field=key)
    return seq


@dataclass
class Conv:
    c: str
    users: tuple[str, str]
    log: list[Frame] = field(default_factory=list)  # without `t`, as they were made
    floor: int = 1
    changed: int = 0
    moved: dict[str, int] = field(default_factory=dict)  # user -> when their cursors moved, where that is told
    cursors: dict[str, list[int]] = field(default_factory=dict)  # user -> [delivered, read]

    @property
    def head(self) -> int:
        return self.log[-1]["seq"] if self.log else self.floor - 1

    @property
    def open(self) -> bool:
        return len(set(self.users)) == 1 or {e["from"] for e in self.log} == set(self.users)

    def peer(self, user: str) -> str:
        a, b = self.users
        return b if user == a else a

    def as_it_stands(self, e: Frame, reader: str) -> Frame:
        out = dict(e)
        if e["from"] != reader:
            out.pop("cid")
        if e["kind"] == "message":
            for change in self.log:
                if change.get("ref") == e["seq"]:
                    out["rev"] = change["seq"]
                    out["body"] = change.get("body")
                    out["edited" if change["kind"] == "edit" else "deleted"] = change["ts"]
            if "deleted" in out:
                out.pop("edited", None)
        return out

    def page(self, entries: list[Frame], reader: str) -> list[Frame]:
        """A page of history, of entries in rising order: in it one text is told once, by its
        message or else by its latest edit.
        """
        out: list[Frame] = []
        told: set[int] = set()
        messages = {e["seq"] for e in entries if e["kind"] == "message"}
        for e in reversed([self.as_it_stands(e, reader) for e in entries]):
            if e["kind"] == "edit":
                if e["ref"] in told | messages:
                    e["body"] = None
                told.add(e["ref"])
            out.append(e)
        return out[::-1]

    def item(self, user: str) -> Frame:
        mine = self.cursors.get(user, [0, 0])
        theirs = self.cursors.get(self.peer(user), [0, 0]) if self.open else [0, 0]
        unread = sum(e["from"] != user and e["kind"] == "message" and e["seq"] > mine[1] for e in self.log)
        return {
            "c": self.c,
            "peer": self.peer(user),
            "head": self.head,
            "floor": self.floor,
            "ts": self.log[-1]["ts"] if self.log else 0,
            "delivered": mine[0],
            "read": mine[1],
            "peer_delivered": theirs[0],
            "peer_read": theirs[1],
            "unread": unread,
            "open": self.open,
        }

    def receipt(self, user: str) -> Frame:
        """Of that user's cursors as they stand."""
        delivered, read = self.cursors[user]
        names = {"from": user, "to": self.peer(user)}
        return {"t": "receipt", "c": self.c, **names, "delivered": delivered, "read": read}


class Session:
    def __init__(self, server: FakeChatd, ws: ServerConnection) -> None:
        self.server, self.ws = server, ws
        self.user = self.device = ""
        self.hello: Frame = {}
        self.requests: list[Frame] = []
        self.blocked: dict[str, str] = {}
        self.watched: list[str] = []
        self.last_id = 0
        self.gone = False  # cut: what had been read already is not taken any more
        self.behind: list[Frame] = []  # pushes that follow the reply in the making
        self.out: asyncio.Queue[Frame | tuple[int, str] | None] = asyncio.Queue()

    def push(self, **frame: Any) -> None:
        self.out.put_nowait(frame)

    def close(self, code: int, reason: str = "") -> None:
        """After what is queued."""
        self.server.sessions.pop((self.user, self.device), None)
        self.out.put_nowait((code, reason))

    def cut(self) -> None:
        """At once, without a word; what is queued is lost."""
        if self.server.sessions.get((self.user, self.device)) is self:
            del self.server.sessions[(self.user, self.device)]
        self.gone = True
        while not self.out.empty():
            self.out.get_nowait()
        self.ws.transport.abort()

    async def write(self) -> None:
        with suppress(ConnectionClosed):
            while (what := await self.out.get()) is not None:
                if isinstance(what, tuple):
                    await self.ws.close(*what)
                    return
                await self.ws.send(orjson.dumps(what).decode())


class FakeChatd:
    """`async with`, which also ends a test that hangs; `url`.

    A token is `<user>` or `<user>/<anything>`.
    """

    def __init__(self) -> None:
        self.url = ""
        self.epoch = "epoch-1"
        self.convs: dict[str, Conv] = {}
        self.sessions: dict[tuple[str, str], Session] = {}
        self.all_sessions: list[Session] = []
        self.fault: Callable[[Session, Frame], Fault] = lambda _session, _frame: None
        self.refused_tokens: dict[str, str] = {}  # token -> unauthorized | token_expired
        self.token_ms: int | None = None  # how long tokens hold
        self.welcome_items = 100
        self.cut_welcome_after: int | None = None  # pages of the next welcome
        self.resync_max = 500
        self.unsaid_repeats: list[Frame] = []  # without `retry`: the end of the fake asserts that there are none
        self.connected = asyncio.Event()
        self._clock = itertools.count(1)
        self.now = next(self._clock)
        self._server: Server | None = None

    async def __aenter__(self) -> Self:
        self._deadline = asyncio.timeout(DEADLINE_S)
        await self._deadline.__aenter__()
        await self.listen()
        return self

    async def listen(self, port: int = 0) -> None:
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            port,
            subprotocols=[Subprotocol("chatd.v1")],
            compression=None,
            max_queue=None,  # with a bound, a close waits in vain behind what is not taken any more
        )
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/ws"

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1].split("/")[0])

    async def stop(self) -> None:
        assert self._server is not None
        for session in list(self.sessions.values()):
            session.cut()
        self._server.close()
        await self._server.wait_closed()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        finally:
            await self._deadline.__aexit__(kind, error, trace)
        assert kind is not None or not self.unsaid_repeats, "a repeat says that it is one"

    # ---- what tests do to it ---------------------------------------------------------------------

    def conv(self, one: str, two: str) -> Conv:
        users = (min(one, two), max(one, two))
        for conv in self.convs.values():
            if conv.users == users:
                return conv
        c = str(len(self.convs) + 12)
        self.convs[c] = conv = Conv(c, users)
        return conv

    def say(self, sender: str, to: str, *bodies: str) -> Conv:
        """Somebody else's client sends these."""
        conv = self.conv(sender, to)
        for body in bodies:
            self.add(conv, sender, "message", f"of-{sender}-{conv.head + 1}", body=body)
        return conv

    def add(self, conv: Conv, sender: str, kind: str, cid: str, made_by: Session | None = None, **keys: Any) -> Frame:
        was_open = conv.open
        self.now = next(self._clock)
        entry = {
            "seq": conv.head + 1,
            "ts": T0 + self.now,
            "from": sender,
            "to": conv.peer(sender),
            "kind": kind,
            "cid": cid,
            **keys,
        }
        conv.log.append(entry)
        conv.changed = self.now
        for session in list(self.sessions.values()):
            if session is not made_by and session.user in conv.users:
                session.push(
                    t="entry", c=conv.c, **{k: v for k, v in entry.items() if k != "cid" or session.user == sender}
                )
        if conv.open and not was_open:
            self._opened(conv, made_by)
        return entry

    def _opened(self, conv: Conv, made_by: Session | None) -> None:
        """Each side learns of the other's cursors, behind the entry that opened it or behind its ok."""
        for session in list(self.sessions.values()):
            if session.user in conv.users and conv.peer(session.user) in conv.cursors:
                receipt = conv.receipt(conv.peer(session.user))
                if session is made_by:
                    session.behind.append(receipt)
                else:
                    session.push(**receipt)

    def session(self, user: str) -> Session:
        """The only one of that user."""
        (found,) = [s for s in self.sessions.values() if s.user == user]
        return found

    def texts(self, one: str, two: str) -> list[str | None]:
        return [e.get("body") for e in self.conv(one, two).log]

    async def until_connected(self, user: str, but: Session | None = None) -> Session:
        """The session of that user, once there is one that is not `but`."""

        def found() -> Session | None:
            return next((one for one in self.sessions.values() if one.user == user and one is not but), None)

        return await until(found, f"{user} is connected", changed=self.connected)

    # ---- the protocol ----------------------------------------------------------------------------

    async def _serve(self, ws: ServerConnection) -> None:
        session = Session(self, ws)
        self.all_sessions.append(session)
        writer = asyncio.create_task(session.write())
        try:
            async for text in ws:
                self._take(session, orjson.loads(text))
        except ConnectionClosed:
            pass
        finally:
            if self.sessions.get((session.user, session.device)) is session:
                del self.sessions[(session.user, session.device)]
            self._presence_changed(session.user)
            session.out.put_nowait(None)
            await writer

    def _take(self, session: Session, frame: Frame) -> None:
        if session.gone:
            return
        assert type(frame["id"]) is int
        assert frame["id"] > session.last_id, "ids grow"
        session.last_id = frame["id"]
        session.requests.append(frame)
        frame = frame | {key: frame[key].lower() for key in ("cid", "refcid") if key in frame}
        fault = self.fault(session, frame)
        if fault == "ignore":
            return
        if fault == "cut":
            session.cut()
            return
        try:
            if isinstance(fault, dict):
                self._block(session, frame, fault)
                raise Refused(**fault)
            reply = getattr(self, f"_on_{frame['t']}")(session, frame)
        except Refused as e:
            reply = e.frame
        if fault == "cut after":
            session.cut()
        elif reply is not None:
            session.push(**({"t": "ok", "id": frame["id"]} | reply))
            for push in session.behind:
                session.push(**push)
        session.behind.clear()
        if (
            reply is not None
            and frame["t"] == "hello"
            and (code := {"unauthorized": 4001, "token_expired": 4002}.get(reply.get("code", "")))
        ):
            session.close(code)

    def _on_hello(self, session: Session, frame: Frame) -> Frame | None:
        token = frame["token"]
        if token in self.refused_tokens:
            raise Refused(self.refused_tokens[token])
        session.user, session.device, session.hello = token.split("/")[0], frame["device"], frame
        if (older := self.sessions.get((session.user, session.device))) is not None:
            older.close(4004, "replaced")
        known = frame.get("epoch") == self.epoch
        cursors = frame.get("cursors", {}) if known else {}
        since = int(frame["since"]) if known and "since" in frame else 0
        items, missed = [], []
        for conv in self.convs.values():
            changed = max(conv.changed, conv.moved.get(session.user, 0))
            if session.user not in conv.users or (changed <= since and conv.c not in cursors):
                continue
            item = conv.item(session.user)
            if (k := cursors.get(conv.c)) is not None:
                if k > conv.head:
                    item["reset"] = True
                elif conv.head - k > self.resync_max:
                    item["page"] = True
                else:
                    missed += [(conv, e) for e in conv.log if e["seq"] > max(k, conv.floor - 1)]
            items.append(item)
        if not self._welcome(session, frame["id"], items):
            return None
        self.sessions[(session.user, session.device)] = session
        for conv, e in missed:
            session.push(t="entry", c=conv.c, **conv.as_it_stands(e, session.user))
        self.connected.set()
        self._presence_changed(session.user)
        return None

    def _welcome(self, session: Session, id: int, items: list[Frame]) -> bool:
        pages = [items[n : n + self.welcome_items] for n in range(0, len(items), self.welcome_items)] or [[]]
        for n, page in enumerate(pages):
            if n == self.cut_welcome_after:
                self.cut_welcome_after = None
                asyncio.get_running_loop().call_later(0.02, session.cut)  # the pages before it go out
                return False
            frame: Frame = {"t": "welcome", "id": id, "conversations": page, "more": n + 1 < len(pages)}
            if n == 0:
                exp = {} if self.token_ms is None else {"exp": T0 + self.now + self.token_ms}
                frame |= {
                    "user": session.user,
                    "device": session.device,
                    "v": 1,
                    "features": [],
                    "epoch": self.epoch,
                    "ts": T0 + self.now,
                    "heartbeat_ms": 20_000,
                    "limits": {"history": 100, "body_bytes": BODY_BYTES, "resync": self.resync_max},
                    "presence": [],
                    **exp,
                }
            if n + 1 == len(pages):
                frame["since"] = str(self.now)
            session.push(**frame)
        return True

    def _where(self, session: Session, frame: Frame) -> Conv:
        assert ("c" in frame) != ("to" in frame)
        if "c" in frame:
            if not isinstance(frame["c"], str):
                raise Refused("bad_field", field="c")
            if (named := self.convs.get(frame["c"])) is None or session.user not in named.users:
                raise Refused("no_conversation")
            return named
        conv = self.conv(session.user, frame["to"])
        if not conv.log and frame["t"] not in ("send", "skip"):
            raise Refused("no_conversation")
        return conv

    def _block(self, session: Session, frame: Frame, fault: Frame) -> None:
        """A retryable refusal of an entry blocks its conversation, unless an earlier one does
        already.
        """
        if frame["t"] in ("send", "edit", "delete"):
            conv = self._where(session, frame)
            if session.blocked.get(conv.c, frame["cid"]) != frame["cid"]:
                raise Refused("blocked", cid=session.blocked[conv.c])
            if "retry_ms" in fault:
                session.blocked[conv.c] = frame["cid"]

    def _entering(self, session: Session, frame: Frame) -> Frame:
        conv = self._where(session, frame)
        if session.blocked.get(conv.c, frame["cid"]) != frame["cid"]:
            raise Refused("blocked", cid=session.blocked[conv.c])
        session.blocked.pop(conv.c, None)
        for e in conv.log:
            if e["cid"] == frame["cid"] and e["from"] == session.user:
                if frame.get("retry") is not True:
                    self.unsaid_repeats.append(frame)
                return {"c": conv.c, "seq": e["seq"], "ts": e["ts"], "dup": True}
        if "body" in frame and not 1 <= len(frame["body"].encode()) <= BODY_BYTES:
            raise Refused("bad_text")
        kind = "message" if frame["t"] == "send" else frame["t"]
        keys = {k: frame[k] for k in ("body",) if k in frame}
        if kind != "message":
            keys["ref"] = self._named(session, conv, frame)
        e = self.add(conv, session.user, kind, frame["cid"], session, **keys)
        return {"c": conv.c, "seq": e["seq"], "ts": e["ts"]}

    @staticmethod
    def _named(session: Session, conv: Conv, frame: Frame) -> int:
        """The seq of the message that a change names, by `ref`, `refcid` or both."""
        ref = a_seq(frame, "ref") if "refcid" not in frame or "ref" in frame else None
        for e in conv.log:
            by_cid = "refcid" not in frame or (frame["refcid"], session.user) == (e["cid"], e["from"])
            if e["kind"] == "message" and by_cid and ref in (None, e["seq"]):
                if e["from"] != session.user:
                    raise Refused("not_author")
                if any(change["kind"] == "delete" and change["ref"] == e["seq"] for change in conv.log):
                    raise Refused("deleted")
                return int(e["seq"])
        raise Refused("no_message")

    _on_send = _on_edit = _on_delete = _entering

    def _on_skip(self, session: Session, frame: Frame) -> Frame:
        conv = self._where(session, frame)
        if session.blocked.get(conv.c) == frame["cid"]:
            del session.blocked[conv.c]
        return {}

    def _cursor(self, session: Session, frame: Frame) -> Frame:
        conv = self._where(session, frame)
        if a_seq(frame, "seq") > conv.head:
            raise Refused("bad_seq", field="seq")
        mine = conv.cursors.setdefault(session.user, [0, 0])
        before = list(mine)
        mine[0] = max(mine[0], frame["seq"])
        if frame["t"] == "read":
            mine[1] = max(mine[1], frame["seq"])
        if mine != before:
            self.now = conv.moved[session.user] = next(self._clock)
            told = set(conv.users) if conv.open else {session.user}
            if conv.open:
                conv.changed = self.now
            for other in self.sessions.values():
                if other is not session and other.user in told:
                    other.push(**conv.receipt(session.user))
        return {"c": conv.c, "delivered": mine[0], "read": mine[1]}

    _on_ack = _on_read = _cursor

    def _on_history(self, session: Session, frame: Frame) -> Frame:
        conv = self._where(session, frame)
        limit, kept = frame.get("limit", 50), [e for e in conv.log if e["seq"] >= conv.floor]
        forwards = "after" in frame
        if forwards:
            wanted = [e for e in kept if e["seq"] > frame["after"]]
        else:
            wanted = [e for e in reversed(kept) if e["seq"] < frame.get("before", conv.head + 1)]
        rows: list[Frame] = []
        for e in wanted:
            if e["kind"] == "message" and sum(r["kind"] == "message" for r in rows) == limit:
                break
            rows.append(e)
        more = len(rows) < len(wanted)
        page = conv.page(rows if forwards else rows[::-1], session.user)
        return {"c": conv.c, "entries": page, "more": more, "head": conv.head, "floor": conv.floor}

    def _on_conversations(self, session: Session, frame: Frame) -> Frame:
        mine = sorted(
            (c for c in self.convs.values() if session.user in c.users and c.log), key=lambda c: -c.log[-1]["ts"]
        )
        start, limit = int(frame.get("cursor", 0)), frame.get("limit", 50)
        page = [c.item(session.user) for c in mine[start : start + limit]]
        return {"conversations": page} | ({"cursor": str(start + limit)} if start + limit < len(mine) else {})

    def _on_typing(self, session: Session, frame: Frame) -> Frame:
        conv = self._where(session, frame)
        if not conv.open:
            raise Refused("not_open")
        for other in self.sessions.values():
            if other is not session and other.user == conv.peer(session.user):
                other.push(t="typing", c=conv.c, **{"from": session.user}, to=other.user)
        return {}

    def presence(self, user: str) -> Frame:
        online = any(s.user == user for s in self.sessions.values())
        return {"user": user, "state": "online" if online else "offline", "v": next(self._clock)}

    def _presence_changed(self, user: str) -> None:
        for session in self.sessions.values():
            if user in session.watched:
                session.push(t="presence", **self.presence(user))

    def _on_watch(self, session: Session, frame: Frame) -> Frame:
        session.watched = frame["users"]
        return {"presence": [self.presence(user) for user in frame["users"]]}

    def _on_presence(self, session: Session, frame: Frame) -> Frame:
        assert frame["state"] in ("online", "away")
        return {}

    def _on_refresh(self, session: Session, frame: Frame) -> Frame:
        if frame["token"] in self.refused_tokens:
            raise Refused(self.refused_tokens[frame["token"]])
        return {"exp": T0 + self.now + (self.token_ms or 0)}

    def _on_ping(self, session: Session, frame: Frame) -> Frame:
        return {"t": "pong", "ts": T0 + self.now}


class NoJitter(random.Random):
    """The shortest wait there can be, for clients under test."""

    def random(self) -> float:
        return 0.0


def make_client(url: str, **keys: Any) -> Client:
    """A client of user `me` that does not wait between its tries."""
    settings: dict[str, Any] = {"token": "me", "device": "bot", "rng": NoJitter()}
    return Client(url, **settings | keys)
