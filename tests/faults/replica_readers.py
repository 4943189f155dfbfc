"""Clients that write, edit, delete, read history and change nodes at random, and note whenever a
page is older than what they had seen when they asked for it.

What a client has seen: of each message the highest rev and whatever text it has at a rev, by
pushes, acks and pages alike, over all of its connections; the head, of the connection that it has.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from typing import Any, Final, NamedTuple

from tests.client import Frame, Peer
from tests.fix_server import Server

WORDS: Final = 10**9


class Stale(NamedTuple):
    """A page was older than what its reader knew."""

    reader: str
    what: str


class Reader:
    """One device of a user, in one conversation at a time with each of its peers."""

    def __init__(self, user: str, peers: list[str], servers: list[Server], rng: random.Random) -> None:
        self.user, self.peers, self.servers, self.rng = user, peers, servers, rng
        self.stale: list[Stale] = []
        self.did: Counter[str] = Counter()
        self.revs: dict[tuple[str, int], int] = {}  # (conversation, seq of a message) -> rev
        self.texts: dict[tuple[str, int, int], str | None] = {}  # and the rev -> text
        self.heads: dict[str, int] = {}
        self.own: list[tuple[str, int]] = []  # messages of this device that it can change
        self.peer: Peer
        self.known: dict[str, str] = {}  # of the welcome: epoch, since

    async def connect(self) -> None:
        server = self.rng.choice(self.servers)
        self.peer = await server.connect(self.user, f"{self.user}-reader", **self.known)
        self.known = {key: self.peer.welcome[key] for key in ("epoch", "since")}
        self.heads = {}

    # ---- what it sees ---------------------------------------------------------------------------

    def saw(self, c: str, e: Frame) -> None:
        """An entry, pushed or paged."""
        about, rev = (e["seq"], e.get("rev", 0)) if e["kind"] == "message" else (e["ref"], e["seq"])
        self.revs[c, about] = max(self.revs.get((c, about), 0), rev)
        if e["kind"] == "message":
            self.texts.setdefault((c, about, rev), e["body"])

    def pushes(self) -> None:
        """What has arrived before the last reply."""
        frames, self.peer.pushes = self.peer.pushes, []
        for e in frames:
            if e["t"] == "entry":
                self.saw(e["c"], e)
                self.heads[e["c"]] = e["seq"]

    def judge(self, page: Frame, revs: dict[tuple[str, int], int], head: int) -> None:
        """`revs`, `head`: what was known when the newest page of this conversation was asked for."""
        c, seqs = page["c"], [e["seq"] for e in page["entries"]]
        if seqs != list(range(seqs[0], seqs[-1] + 1)) or seqs[-1] < head:
            self.stale.append(Stale(self.user, f"{c}: seqs {seqs[0]} to {seqs[-1]}, and {head} was known"))
        for e in page["entries"]:
            if e["kind"] != "message":
                continue
            rev = e.get("rev", 0)
            if rev < revs.get((c, e["seq"]), 0):
                self.stale.append(Stale(self.user, f"{c}/{e['seq']} at rev {rev} after {revs[c, e['seq']]}"))
            elif self.texts.get((c, e["seq"], rev), e["body"]) != e["body"]:
                self.stale.append(Stale(self.user, f"{c}/{e['seq']} at rev {rev} has another text"))

    # ---- what it does ---------------------------------------------------------------------------

    async def request(self, t: str, **keys: Any) -> Frame:
        answer = await self.peer.request(t, **keys)
        self.pushes()
        self.did[t if answer["t"] == "ok" else answer["code"]] += 1
        return answer

    async def write(self) -> None:
        to = self.rng.choice(self.peers)
        text = str(self.rng.randrange(WORDS))
        answer = await self.request("send", to=to, cid=str(uuid.uuid4()), body=text)
        if answer["t"] == "ok":
            self.own.append((answer["c"], answer["seq"]))
            self.heads[answer["c"]] = answer["seq"]
            self.revs.setdefault((answer["c"], answer["seq"]), 0)
            self.texts[answer["c"], answer["seq"], 0] = text

    async def change(self) -> None:
        """An edit, or sometimes a delete, of a message of its own."""
        if not self.own:
            return
        c, ref = self.rng.choice(self.own[-5:])
        is_edit = self.rng.random() < 0.85
        text = {"body": str(self.rng.randrange(WORDS))} if is_edit else {}
        answer = await self.request("edit" if is_edit else "delete", c=c, ref=ref, cid=str(uuid.uuid4()), **text)
        if answer["t"] == "ok":
            self.revs[c, ref] = max(self.revs.get((c, ref), 0), answer["seq"])
            self.texts[c, ref, answer["seq"]] = text.get("body")
            self.heads[c] = answer["seq"]
        if not is_edit:
            self.own.remove((c, ref))

    async def read(self, c: str | None = None) -> None:
        known = sorted({c for c, _ in self.revs})
        if not known:
            return
        c = c or self.rng.choice(known)
        revs, head = dict(self.revs), self.heads.get(c, 0)
        answer = await self.request("history", c=c, limit=30)
        if answer["t"] == "ok" and answer["entries"]:
            self.judge(answer, revs, head)
            for e in answer["entries"]:
                self.saw(c, e)

    async def move(self) -> None:
        """Another connection, to any of the nodes."""
        self.pushes()
        await self.peer.close()
        await self.connect()
        self.did["move"] += 1

    async def live(self, until: float) -> None:
        """Do things until this time of the loop."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            what = self.rng.choices((self.read, self.change, self.write, self.move), (10, 4, 3, 1))[0]
            await what()
            await asyncio.sleep(self.rng.uniform(0, 0.02))
