"""The conformance vectors of `tests/vectors/client/`, run against the Python SDK and against the
stranger's client.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from chatd.client import Client, RequestError, Stopped
from tests.client import Frame
from tests.client_vector_runner import ClientRunner, Subject, known
from tests.stranger import Stranger
from tests.vector_runner import Mismatch

FOLDER = Path(__file__).parent.parent / "vectors" / "client"
VECTORS = [
    (f"{path.stem}: {v['name']}", v["steps"])
    for path in sorted(FOLDER.glob("*.json"))
    for v in json.loads(path.read_text())["vectors"]
]


class StrangerSubject:
    """tests/stranger.py."""

    async def start(self, url: str) -> None:
        self.client = Stranger(url, lambda renew: "new" if renew else "old")
        self.task = asyncio.create_task(self.client.run())

    def send(self, to: str, body: str) -> asyncio.Future[Frame]:
        return self.client.send(to, body)

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

    def send(self, to: str, body: str) -> asyncio.Future[Frame]:
        async def send() -> Frame:
            try:
                return {"seq": (await self.client.send(to, body)).seq}
            except RequestError as e:
                return {"code": e.code}

        task = asyncio.create_task(send())
        self.tasks.add(task)
        return task

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


SUBJECTS: dict[str, type[Subject]] = {"stranger": StrangerSubject, "sdk": SdkSubject}


@pytest.mark.parametrize(("name", "steps"), VECTORS, ids=[name for name, _ in VECTORS])
@pytest.mark.parametrize("subject", SUBJECTS)
async def test_client_vectors(subject: str, name: str, steps: list[Frame]) -> None:
    await ClientRunner(SUBJECTS[subject]()).run(steps)


async def test_a_wrong_vector_fails() -> None:
    """The runner can say no."""
    item: dict[str, Any] = {"c": "12", "peer": "bob", "head": 0, "floor": 1}
    welcome: Frame = {"welcome": {"conversations": [item]}}
    entry = {"t": "entry", "c": "12", "seq": 1, "ts": 1, "from": "bob", "to": "alice", "kind": "message", "body": "hi"}
    wrong: list[list[Frame]] = [
        [welcome, {"server": entry}, {"shows": [{"seq": 1, "body": "ho"}]}],
        [welcome, {"close": 4006}, {"does": "reconnect", "hello": {"cursors": {"12": 1}}}],
        [welcome, {"app": {"send": "hi", "to": "bob"}}, {"client": {"t": "send", "retry": True}}],
    ]
    for steps in wrong:
        with pytest.raises(Mismatch):
            await ClientRunner(StrangerSubject()).run(steps)
