"""What the fake server does with each request: the contract of docs/protocol.md, without its checks
of what no client of chatd sends.
"""

from __future__ import annotations

import asyncio

from chatd.client.testing.conversation import Conv, Frame
from chatd.client.testing.session import Session
from chatd.client.testing.world import T0, World

BODY_BYTES = 2048


class Refused(Exception):
    """Answers a request by this `err`."""

    def __init__(self, code: str, **keys: object) -> None:
        self.frame: Frame = {"t": "err", "code": code, "msg": code.replace("_", " "), **keys}


def a_seq(frame: Frame, key: str) -> int:
    if type(seq := frame.get(key)) is not int:
        raise Refused("bad_field", field=key)
    if seq < 1:
        raise Refused("bad_seq", field=key)
    return seq


class Requests(World):
    """One method a request; `handle` finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.refused_tokens: dict[str, str] = {}  # token -> unauthorized | token_expired
        self.token_ms: int | None = None  # how long tokens hold
        self.welcome_items = 100
        self.cut_welcome_after: int | None = None  # pages of the next welcome
        self.resync_max = 500
        # What it says of the rate in `limits`. It has none; clients pace themselves by it.
        self.messages, self.per_ms = 1_000_000, 5_000
        self.unsaid_repeats: list[Frame] = []  # without `retry`: the end of the fake asserts that there are none

    def handle(self, session: Session, frame: Frame) -> Frame | None:
        """The reply without its `id`; None: the handler has answered."""
        reply: Frame | None = getattr(self, f"_on_{frame['t']}")(session, frame)
        return reply

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
        self.presence_changed(session.user)
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
                    "limits": {
                        "history": 100,
                        "body_bytes": BODY_BYTES,
                        "resync": self.resync_max,
                        "messages": self.messages,
                        "per_ms": self.per_ms,
                    },
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
