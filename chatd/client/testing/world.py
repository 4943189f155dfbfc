"""What the fake server holds, and what a test does to it: people who write, who is connected."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from chatd.client.testing.conversation import Conv, Frame
from chatd.client.testing.session import Session

T0 = 1_790_000_000_000


class World:
    """Conversations, sessions, a clock that a test owns."""

    def __init__(self) -> None:
        self.epoch = "epoch-1"
        self.convs: dict[str, Conv] = {}
        self.sessions: dict[tuple[str, str], Session] = {}
        self.connected = asyncio.Event()
        self._clock = itertools.count(1)
        self.now = next(self._clock)

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
        """Each side learns of the other's cursors, behind the entry that opened it or its ok."""
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
        while True:
            for one in self.sessions.values():
                if one.user == user and one is not but:
                    return one
            self.connected.clear()
            await self.connected.wait()

    def presence(self, user: str) -> Frame:
        online = any(s.user == user for s in self.sessions.values())
        return {"user": user, "state": "online" if online else "offline", "v": next(self._clock)}

    def presence_changed(self, user: str) -> None:
        for session in self.sessions.values():
            if user in session.watched:
                session.push(t="presence", **self.presence(user))
