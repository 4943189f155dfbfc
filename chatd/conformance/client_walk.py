"""Seeded random walks for a client: people chat, lines end between commit and answer, and a model
knows.

    walk = ClientWalk(subject, random.Random("7/walk 1"), steps=60)
    await walk.run()         raises Mismatch, which begins with the rule that was broken

The client under test is alice's. Its application writes, edits and deletes; bob and carol do, too,
and another device of alice. The kit is the server (`played_server`), and spoils what it may: it
loses answers, refuses for a while, sends entries twice, ends lines. At the end nothing is spoilt
any more, and all must be right: what the application was shown is the log, each entry once and in
order; each send has one outcome, and the true one; each is in the log once, in the order of the
calls.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from chatd.conformance.client_vectors import Subject
from chatd.conformance.played_log import ALICE, KINDS, PlayedLog
from chatd.conformance.played_server import PEERS, PlayedServer
from chatd.conformance.server_vectors import WAIT_S
from chatd.conformance.values import Frame, Mismatch

BACK_S: Final = 10.0  # longer than what a client waits for its next try after all cuts of a walk
PAUSE_S: Final = 0.02  # at most, between two steps
WAITS: Final = 0.15  # of the steps wait until the client is connected
LAST_KEPT: Final = 12  # actions that the reason of a failure quotes


@dataclass(slots=True)
class Wish:
    """What the application asked for: as the server has it once it is stored."""

    peer: str
    kind: str
    ref: int
    body: str | None
    outcome: asyncio.Future[Frame]

    @property
    def key(self) -> tuple[str, str, int, str | None]:
        return self.peer, self.kind, self.ref, self.body


class ClientWalk:
    """One walk. `checks` counts what was judged, by rule."""

    def __init__(self, subject: Subject, rng: random.Random, steps: int, wait_s: float = WAIT_S) -> None:
        self.checks: Counter[str] = Counter()
        self._subject = subject
        self._rng = rng
        self._steps = steps
        self._wait_s = wait_s
        self._server = PlayedServer(random.Random(rng.random()))
        self._wishes: list[Wish] = []
        self._changed: set[tuple[str, int]] = set()  # own messages that the application wants deleted
        self._done: list[str] = []
        self._numbers = itertools.count(1)
        actions: list[tuple[int, Callable[[str], None]]] = [
            (10, self._send), (8, self._others_say), (3, self._others_change), (2, self._other_device),
            (1, self._sticker), (2, self._repeat), (1, self._noise), (3, self._cut), (1, self._drain),
        ]  # fmt: skip
        actions += [(3, self._edit)] if "edit" in subject.can else []
        actions += [(2, self._delete)] if "delete" in subject.can else []
        self._weights, self._actions = zip(*actions, strict=True)

    async def run(self) -> None:
        """Raises Mismatch with the rule, what was seen, and the last actions."""
        try:
            async with self._server.listening() as url:
                try:
                    await self._walk(url)
                finally:
                    await self._subject.stop()
        except Mismatch as e:
            raise Mismatch(f"{e} | the last actions: {'; '.join(self._done[-LAST_KEPT:])}") from e
        finally:
            for wish in self._wishes:
                wish.outcome.cancel()

    async def _walk(self, url: str) -> None:
        await self._subject.start(url)
        self._send("bob")  # the client knows the log from its beginning
        await self._all_answered()
        self._server.faults = True
        for _ in range(self._steps):
            peer = self._rng.choice(list(PEERS))
            self._rng.choices(self._actions, self._weights)[0](peer)
            if self._rng.random() < WAITS:  # else all that follows would happen while it is away
                await self._unless_ended(self._server.welcomed.wait(), lambda: "it comes back after a cut")
            await asyncio.sleep(self._rng.random() * PAUSE_S)
            self._check_rules()
        await self._all_answered()
        self._done.append("all settle")
        self._server.faults = False
        for peer in PEERS:
            self._send(peer)
        await self._all_answered()
        for peer in PEERS:
            self._server.says(peer, peer, "message", "the end")
        self._judge(await self._all_shown())

    # ---- actions ---------------------------------------------------------------------------------

    def _ask(self, what: str, peer: str, kind: str, ref: int, body: str | None) -> None:
        keys: Frame = {"to": peer}
        keys |= {"ref": ref} if ref else {}
        keys |= {} if body is None else {"body": body}
        self._wishes.append(Wish(peer, kind, ref, body, self._subject.ask(what, keys)))
        self._done.append(f"{what} {body or ref} to {peer}")

    def _send(self, peer: str) -> None:
        for _ in range(self._rng.randint(1, 3)):
            self._ask("send", peer, "message", 0, f"own {next(self._numbers)}")

    def _own(self, peer: str) -> int:
        """A message whose place the application knows, and that it has not deleted; 0: none."""
        own = [
            int(str(wish.outcome.result()["seq"]))
            for wish in self._wishes
            if wish.peer == peer and wish.kind == "message" and wish.outcome.done() and "seq" in wish.outcome.result()
        ]
        left = [seq for seq in own if (peer, seq) not in self._changed]
        return self._rng.choice(left) if left else 0

    def _edit(self, peer: str) -> None:
        if ref := self._own(peer):
            self._ask("edit", peer, "edit", ref, f"edited {next(self._numbers)}")

    def _delete(self, peer: str) -> None:
        if ref := self._own(peer):
            self._changed.add((peer, ref))
            self._ask("delete", peer, "delete", ref, None)

    def _others_say(self, peer: str) -> None:
        for _ in range(self._rng.randint(1, 7)):
            self._server.says(peer, peer, "message", f"{peer} {next(self._numbers)}")
        self._done.append(f"{peer} says something")

    def _others_change(self, peer: str) -> None:
        log = self._server.logs[peer]
        theirs = [line.seq for line in log.lines if line.sender == peer and line.kind == "message"]
        left = [seq for seq in theirs if not log.is_deleted(seq)]
        if left:
            is_edit = self._rng.random() < 0.7
            body = f"{peer} edited {next(self._numbers)}" if is_edit else None
            self._server.says(peer, peer, "edit" if is_edit else "delete", body, self._rng.choice(left))
            self._done.append(f"{peer} {'edits' if is_edit else 'deletes'} something")

    def _other_device(self, peer: str) -> None:
        self._server.says(ALICE, peer, "message", f"elsewhere {next(self._numbers)}")
        self._done.append(f"another device of alice says something to {peer}")

    def _sticker(self, peer: str) -> None:
        self._server.says(peer, peer, "sticker", "of a later release")

    def _repeat(self, peer: str) -> None:
        self._server.repeat(peer)

    def _noise(self, _: str) -> None:
        self._server.noise()

    def _cut(self, _: str) -> None:
        if self._server.cut():
            self._done.append("the line is cut")

    def _drain(self, _: str) -> None:
        if self._server.drain():
            self._done.append("the server drains")

    # ---- what must hold --------------------------------------------------------------------------

    def _check_rules(self) -> None:
        if self._server.broken:
            raise Mismatch(self._server.broken[0])

    async def _unless_ended(self, awaited: Awaitable[object], rule: Callable[[], str]) -> None:
        """Wait for it; Mismatch by the rule if it takes too long, or the client gives up."""
        waiting, ending = asyncio.ensure_future(awaited), asyncio.ensure_future(self._subject.ended())
        try:
            await asyncio.wait([waiting, ending], timeout=self._wait_s + BACK_S, return_when=asyncio.FIRST_COMPLETED)
            self._check_rules()
            if not waiting.done():
                raise Mismatch("it gives up only where it must" if ending.done() else rule())
        finally:
            for one in (waiting, ending):
                one.cancel()
            await asyncio.gather(waiting, ending, return_exceptions=True)

    async def _all_answered(self) -> None:
        def missing() -> str:
            open_ones = [wish.key for wish in self._wishes if not wish.outcome.done()]
            return f"each send has an outcome: none for {open_ones[:5]}"

        await self._unless_ended(asyncio.wait([wish.outcome for wish in self._wishes]), missing)

    async def _all_shown(self) -> list[Frame]:
        """What the client has given to its application once it has all, or nothing more arrives."""
        logs = self._server.logs.values()
        count = sum(line.kind in KINDS for log in logs for line in log.lines)
        shown: list[Frame] = []

        async def all_of_them() -> None:
            shown.extend(await self._subject.shown(count))

        def missing() -> str:
            return f"each entry once: of {count} entries some are not shown"

        await self._unless_ended(all_of_them(), missing)
        return shown

    def _judge(self, shown: list[Frame]) -> None:
        for peer, log in self._server.logs.items():
            if problem := log.problem([entry for entry in shown if entry.get("c") == log.c]):
                raise Mismatch(problem)
            self.checks["entries shown"] += log.head
            self._judge_outbox(peer, log)
        self.checks += self._server.checks

    def _judge_outbox(self, peer: str, log: PlayedLog) -> None:
        wanted = [wish.key for wish in self._wishes if wish.peer == peer and wish.key not in self._server.refused]
        stored = [key for key in self._server.wishes if key[0] == peer]
        for wish, entry in itertools.zip_longest(wanted, stored):
            if wish != entry:
                raise Mismatch(f"each send once, in the order of the calls: {wish} is next, and stored is {entry}")
        places = {(peer, line.kind, line.ref, line.body): line.seq for line in log.lines if line.sender == ALICE}
        for wish in (wish for wish in self._wishes if wish.peer == peer):
            outcome = wish.outcome.result()
            true: Frame = {"code": "refused"} if wish.key in self._server.refused else {"seq": places[wish.key]}
            if any(outcome.get(key) != value for key, value in true.items()):
                raise Mismatch(f"each send has its true outcome: {wish.key} has {true}, and the client said {outcome}")
            self.checks["outcomes"] += 1
