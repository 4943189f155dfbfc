"""The conformance vectors for clients (chatd/conformance/vectors/client), run against the Python SDK and against the
stranger's client.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest

from chatd.client import Client, RequestError, Stopped
from chatd.conformance import vectors
from chatd.conformance.client_vectors import MAIN, ClientRunner, Subject, known
from chatd.conformance.values import Mismatch
from chatd.conformance.vectors import Vector
from tests.client import Frame
from tests.stranger import Stranger


class StrangerSubject:
    """tests/stranger.py."""

    can = frozenset({"send", "edit", "delete"})

    async def start(self, url: str) -> None:
        self.client = Stranger(url, lambda renew: "new" if renew else "old")
        self.task = asyncio.create_task(self.client.run())

    def ask(self, what: str, keys: Frame) -> asyncio.Future[Frame]:
        result: asyncio.Future[Frame] = getattr(self.client, what)(**keys)
        return result

    async def shown(self, count: int) -> list[Frame]:
        while len(known(self.client.shown)) < count:
            self.client.news.clear()
            await self.client.news.wait()
        return known(self.client.shown)

    async def ended(self) -> None:
        await asyncio.wait([self.task])

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


class SdkSubject:
    """chatd.client.Client."""

    can = frozenset(MAIN)

    async def start(self, url: str) -> None:
        self.client = Client(url, token=lambda renew: "new" if renew else "old", device="sdk")
        self.news = asyncio.Event()
        self.given: list[Frame] = []
        self.over = False
        self.tasks: set[asyncio.Task[Any]] = {asyncio.create_task(self._live())}

    async def _live(self) -> None:
        try:
            await self.client.open()
            async for e in self.client.entries():
                who = {"from": self.client.user, "to": e.peer} if e.own else {"from": e.peer, "to": self.client.user}
                self.given.append({"c": e.c, "seq": e.seq, "kind": e.kind, "body": e.body, "ref": e.ref, **who})
                self.news.set()
        except Stopped:
            self.over = True
            self.news.set()

    def ask(self, what: str, keys: Frame) -> asyncio.Future[Frame]:
        async def done() -> Frame:
            try:
                return await self._asked(what, keys)
            except RequestError as e:
                return {"code": e.code}

        task = asyncio.create_task(done())
        self.tasks.add(task)
        return task

    async def _asked(self, what: str, keys: Frame) -> Frame:
        match what:
            case "send":
                return {"seq": (await self.client.send(keys["to"], keys["body"])).seq}
            case "edit":
                return {"seq": (await self.client.edit(keys["to"], keys["ref"], keys["body"])).seq}
            case "delete":
                return {"seq": (await self.client.delete(keys["to"], keys["ref"])).seq}
            case "read":
                await self.client.read(keys["to"], keys["seq"])
                return {}
        page = await self.client.history(keys["to"], before=keys["before"])
        return {"entries": [{"seq": entry.seq, "body": entry.body} for entry in page.entries]}

    async def shown(self, count: int) -> list[Frame]:
        while len(known(self.given)) < count:
            self.news.clear()
            await self.news.wait()
        return known(self.given)

    async def ended(self) -> None:
        while not self.over:
            self.news.clear()
            await self.news.wait()

    async def stop(self) -> None:
        await self.client.close(drain=False)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


SUBJECTS: Final[dict[str, type[StrangerSubject | SdkSubject]]] = {"stranger": StrangerSubject, "sdk": SdkSubject}
CASES: Final = [
    pytest.param(SUBJECTS[name], one, id=f"{name}-{one.file}: {one.name}")
    for name in SUBJECTS
    for one in vectors.load("client")
    if one.app <= SUBJECTS[name].can
]


@pytest.mark.parametrize(("subject", "vector"), CASES)
async def test_client_vectors(subject: type[Subject], vector: Vector) -> None:
    await ClientRunner(subject()).run(vector.steps)


async def test_a_wrong_vector_fails() -> None:
    """The runner can say no."""
    item: dict[str, Any] = {"c": "12", "peer": "bob", "head": 0, "floor": 1}
    welcome: Frame = {"welcome": {"conversations": [item]}}
    entry = {"t": "entry", "c": "12", "seq": 1, "ts": 1, "from": "bob", "to": "alice", "kind": "message", "body": "hi"}
    wrong: list[list[dict[str, object]]] = [
        [welcome, {"server": entry}, {"shows": [{"seq": 1, "body": "ho"}]}],
        [welcome, {"close": 4006}, {"does": "reconnect", "hello": {"cursors": {"12": 1}}}],
        [welcome, {"app": {"send": "hi", "to": "bob"}}, {"client": {"t": "send", "retry": True}}],
    ]
    for steps in wrong:
        with pytest.raises(Mismatch):
            await ClientRunner(StrangerSubject()).run(steps)
