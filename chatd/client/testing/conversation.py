"""A conversation in memory: its log, its cursors, and how each of the two sees them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

Frame: TypeAlias = dict[str, Any]


@dataclass
class Conv:
    c: str
    users: tuple[str, str]
    log: list[Frame] = field(default_factory=list)  # without `t`, as they were made
    floor: int = 1
    changed: int = 0
    moved: dict[str, int] = field(default_factory=dict)  # user -> when their cursors moved
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
        """A page of history, of entries in rising order: it has a text once, in its message or else
        in its latest edit.
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
