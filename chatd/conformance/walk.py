"""Seeded random walks: people chat, edit, read, lose their lines and come back, and a model knows.

    walk = Walk(place, random.Random("7/1"), steps=60)
    await walk.run()         raises Mismatch, which begins with the rule that was broken

The same seed does the same, as far as the server does. Each walk has users of its own, and each of
them sends fewer messages than the rate allows, so that nothing waits. The rules are those of
docs/protocol.md: order, each entry once, retries, resync, history, lists, cursors and receipts,
presence.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from chatd.conformance.launch import ServerPlace
from chatd.conformance.log_model import Line, LogModel
from chatd.conformance.server_vectors import WAIT_S
from chatd.conformance.values import Frame, Mismatch, as_frame, as_frames, as_int, as_text
from chatd.conformance.walk_device import WalkDevice
from chatd.conformance.walk_judge import WalkJudge

PEOPLE: Final = ("ann", "ben", "cid")
DEVICES: Final = ("phone", "desk")
LAST_KEPT: Final = 12  # actions that the reason of a failure quotes


class Walk:
    """One walk. `checks` counts what was judged, by rule."""

    def __init__(self, place: ServerPlace, rng: random.Random, steps: int, wait_s: float = WAIT_S) -> None:
        run = uuid.uuid4().hex[:8]
        self.users = [f"{name}-{run}" for name in PEOPLE]
        self.checks: Counter[str] = Counter()
        self.devices = [WalkDevice(place, user, name, self.checks, wait_s) for user in self.users for name in DEVICES]
        pairs = list(itertools.combinations(self.users, 2))
        self.logs: dict[frozenset[str], LogModel] = {frozenset(pair): LogModel(pair) for pair in pairs}
        self.judge = WalkJudge(self.devices, list(self.logs.values()), self.checks)
        self._rng = rng
        self._steps = steps
        self._left: dict[str, int] = {}  # entries that each user may still make
        self._done: list[str] = []
        self._numbers = itertools.count(1)
        self._actions: list[tuple[int, Callable[[WalkDevice], Awaitable[None]]]] = [
            (10, self._send), (3, self._burst), (4, self._resend), (4, self._change), (2, self._forbidden),
            (5, self._move_cursor), (3, self._history), (2, self._list), (3, self._cut), (6, self._come_back),
            (2, self._set_state), (1, self._typing), (2, self._settle),
        ]  # fmt: skip

    async def run(self) -> None:
        """Raises Mismatch with the rule, what was seen, and the last actions."""
        try:
            for device in self.devices[:: len(DEVICES)]:
                welcome = await device.connect(self._others(device), "fresh")
                self._left[device.user] = as_int(as_frame(welcome["limits"])["messages"]) - 1
            for _ in range(self._steps):
                await self._step()
            await self._end()
        except (Mismatch, TimeoutError, OSError) as e:
            last = "; ".join(self._done[-LAST_KEPT:])
            raise Mismatch(f"{str(e) or type(e).__name__} | the last actions: {last}") from e
        finally:
            for device in self.devices:
                device.cut()

    async def _step(self) -> None:
        weights, actions = zip(*self._actions, strict=True)
        action = self._rng.choices(actions, weights)[0]
        here = [device for device in self.devices if device.is_connected]
        if not here or action == self._come_back:
            gone = [device for device in self.devices if not device.is_connected]
            if gone:
                await self._come_back(self._rng.choice(gone))
        else:
            await action(self._rng.choice(here))
        for device in self.devices:
            device.check()

    def _note(self, device: WalkDevice, what: str) -> None:
        self._done.append(f"{device.user.partition('-')[0]}/{device.name} {what}")

    def _others(self, device: WalkDevice) -> list[str]:
        return [user for user in self.users if user != device.user]

    def _log(self, user: str, other: str) -> LogModel:
        return self.logs[frozenset((user, other))]

    def _logs_of(self, device: WalkDevice) -> list[LogModel]:
        return [log for log in self.logs.values() if device.user in log.users and log.lines]

    # ---- entries ---------------------------------------------------------------------------------

    def _new(self, device: WalkDevice, **keys: object) -> Frame:
        self._left[device.user] -= 1
        return {**keys, "cid": str(uuid.UUID(int=self._rng.getrandbits(128), version=4))}

    def _message(self, device: WalkDevice) -> Frame:
        to = self._rng.choice(self._others(device))
        return self._new(device, t="send", to=to, body=f"{device.name} {next(self._numbers)}")

    def _stored(self, device: WalkDevice, request: Frame, answer: Frame) -> None:
        """Keep what was answered as a line of its log."""
        if answer["t"] != "ok":
            raise Mismatch(f"a good request is answered by ok: {device} asked {request} and got {answer}")
        kind = "message" if request["t"] == "send" else as_text(request["t"])
        body = as_text(request["body"]) if "body" in request else None
        ref = as_int(request.get("ref", 0))
        seq, ts, to = as_int(answer["seq"]), as_int(answer["ts"]), as_text(request["to"])
        line = Line(seq, ts, device.user, to, kind, body, ref, as_text(request["cid"]))
        self._log(device.user, to).add(as_text(answer["c"]), line)
        self.checks["durable"] += 1

    async def _send(self, device: WalkDevice) -> None:
        if self._left[device.user] > 0:
            request = self._message(device)
            self._note(device, f"sends {request['body']!r} to {request['to']}")
            self._stored(device, request, await device.ask(request))

    async def _burst(self, device: WalkDevice) -> None:
        count = min(self._rng.randint(2, 4), self._left[device.user])
        requests = [self._message(device) for _ in range(count)]
        self._note(device, f"sends {count} at once")
        await self._ask_in_order(device, requests)

    async def _ask_in_order(self, device: WalkDevice, requests: list[Frame]) -> None:
        """Without waiting in between; in a conversation the seqs must rise as they were sent."""
        answers = [await device.post(request) for request in requests]
        await device.until(lambda: all(one.done() for one in answers), lambda: "pipelined requests are answered")
        last: dict[object, int] = {}
        for request, answer in zip(requests, answers, strict=True):
            self._stored(device, request, answer.result())
            seq = as_int(answer.result()["seq"])
            if seq <= last.get(request["to"], 0):
                raise Mismatch(f"entries stand in the order sent: {device} sent {requests}, and {request} has {seq}")
            last[request["to"]] = seq
            self.checks["order sent"] += 1

    async def _resend(self, device: WalkDevice) -> None:
        """A cid that is in the log, with another text: the first one's place is answered."""
        own = [line for log in self._logs_of(device) for line in log.lines.values() if line.sender == device.user]
        if not own:
            return
        line = self._rng.choice(own)
        self._note(device, f"sends cid of seq {line.seq} again")
        again: Frame = {"t": "send", "to": line.to, "cid": line.cid, "body": "again", "retry": True}
        answer = await device.ask(again)
        if (answer["t"], answer.get("seq"), answer.get("ts"), answer.get("dup")) != ("ok", line.seq, line.ts, True):
            raise Mismatch(f"a retry is answered with the first one's place: {line}, and now {answer}")
        self.checks["retries"] += 1

    async def _change(self, device: WalkDevice) -> None:
        """Edit or delete a message of one's own."""
        mine = [
            (log, line)
            for log in self._logs_of(device)
            for line in log.lines.values()
            if line.sender == device.user and line.kind == "message" and log.text(line.seq) is not None
        ]
        if not mine or self._left[device.user] <= 0:
            return
        _, line = self._rng.choice(mine)
        request = self._new(device, t=self._rng.choice(("edit", "edit", "delete")), to=line.to, ref=line.seq)
        if request["t"] == "edit":
            request["body"] = f"edited {next(self._numbers)}"
        self._note(device, f"{request['t']}s seq {line.seq}")
        self._stored(device, request, await device.ask(request))

    async def _forbidden(self, device: WalkDevice) -> None:
        """What must be refused, and change nothing."""
        lines = [(log, line) for log in self._logs_of(device) for line in log.lines.values() if line.kind == "message"]
        if not lines or self._left[device.user] <= 0:
            return
        log, line = self._rng.choice(lines)
        if line.sender == device.user and log.text(line.seq) is not None:
            return
        code = "not_author" if line.sender != device.user else "deleted"
        request = self._new(device, t="edit", to=log.other(device.user), ref=line.seq, body="x")
        self._note(device, f"must not edit seq {line.seq}")
        answer = await device.ask(request)
        if (answer["t"], answer.get("code")) != ("err", code):
            raise Mismatch(f"an edit of {line} is refused with {code}: {device} got {answer}")
        self.checks["refusals"] += 1

    # ---- reading ---------------------------------------------------------------------------------

    async def _move_cursor(self, device: WalkDevice) -> None:
        logs = [log for log in self._logs_of(device) if device.held.get(log.c, 0) > 0]
        if not logs:
            return
        log = self._rng.choice(logs)
        seq, t = self._rng.randint(1, device.held[log.c]), self._rng.choice(("ack", "read", "read"))
        self._note(device, f"{t}s up to {seq}")
        mine = log.cursors[device.user]
        mine.move(seq, seq if t == "read" else 0)
        answer = await device.ask({"t": t, "c": log.c, "seq": seq})
        if (answer.get("delivered"), answer.get("read")) != (mine.delivered, mine.read):
            raise Mismatch(f"cursors only go forward: {device} {t} {seq} gives {mine}, and got {answer}")
        self.checks["cursors"] += 1

    async def _history(self, device: WalkDevice) -> None:
        logs = self._logs_of(device)
        if logs:
            log = self._rng.choice(logs)
            asked: Frame = {"t": "history", "c": log.c, "limit": self._rng.randint(1, 8)}
            if self._rng.random() < 0.8:
                asked[self._rng.choice(("before", "after"))] = self._rng.randint(1, log.head)
            at = {key: asked[key] for key in ("before", "after", "limit") if key in asked}
            self._note(device, f"asks for history {at} with {log.other(device.user).partition('-')[0]}")
            known_head = log.head
            self.judge.page(device, log, asked, await device.ask(asked), known_head)

    async def _list(self, device: WalkDevice) -> None:
        await self._settle(device)
        answer = await device.ask({"t": "conversations", "limit": 50})
        self.judge.items(device, as_frames(answer["conversations"]))

    # ---- lines, states ---------------------------------------------------------------------------

    async def _cut(self, device: WalkDevice) -> None:
        """A line that breaks, with requests whose outcome nobody knows."""
        count = min(self._rng.randint(0, 3), self._left[device.user])
        requests = [self._message(device) for _ in range(count)]
        answers = [await device.post(request) for request in requests]
        for _ in range(self._rng.randint(0, 3)):
            await asyncio.sleep(0)
        self._note(device, f"is cut off with {count} on their way")
        device.cut()
        for request, answer in zip(requests, answers, strict=True):
            if not answer.cancelled():
                self._stored(device, request, answer.result())

    async def _come_back(self, device: WalkDevice) -> None:
        """Resync, then the outbox again in order."""
        how = self._rng.choice(("mark", "mark", "cursors", "fresh"))
        self._note(device, f"comes back by {how}")
        await device.connect(self._others(device), how)
        waiting, device.outbox = device.outbox, []
        await self._ask_in_order(device, [{**request, "retry": True} for request in waiting])

    async def _set_state(self, device: WalkDevice) -> None:
        device.away = not device.away
        self._note(device, f"is {'away' if device.away else 'online'}")
        await device.ask({"t": "presence", "state": "away" if device.away else "online"})

    async def _typing(self, device: WalkDevice) -> None:
        if logs := self._logs_of(device):
            log = self._rng.choice(logs)
            answer = await device.ask({"t": "typing", "c": log.c})
            if not any(other.outbox for other in self.devices) and (answer["t"] == "ok") is not log.is_open:
                raise Mismatch(f"typing flows between those who have both sent: {log.is_open}, and got {answer}")
            self.checks["typing"] += 1

    async def _settle(self, _: WalkDevice) -> None:
        """All outcomes are known, and everybody who is connected has everything."""
        for device in self.devices:
            if device.outbox:
                await self._come_back(device)
        self._done.append("all settle")
        await self.judge.settled()

    async def _end(self) -> None:
        """What must hold when nothing happens any more."""
        await self._settle(self.devices[0])
        await self.judge.receipts()
        await self.judge.presence()
        for user in self.users:
            reader = next(device for device in self.devices if device.user == user)
            if not reader.is_connected:
                await reader.connect(self._others(reader), "mark")
            await self.judge.whole_logs(reader)
            listed = await reader.ask({"t": "conversations"})
            self.judge.items(reader, as_frames(listed["conversations"]))
        await self.judge.settled()
