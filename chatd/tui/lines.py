"""`chatd chat` without a screen: standard input line by line to one person, what arrives to
standard output.

    $ echo "the build is green" | chatd chat ci alice
    20:14:44 alice < the build is green

Each line is a message; an empty one is passed over. It ends with the input, once every line is sent
or refused. Output is that of `chatd tail`, of this conversation alone.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final, TextIO

from chatd.client import Client, ClientError
from chatd.client.printable import escaped
from chatd.client.tail import line

AHEAD_MAX: Final = 100  # lines that are read before the first of them is sent
SHOWN_S: Final = 5.0  # longest wait, at the end, for own lines to be shown
QUOTED_MAX: Final = 60  # characters of a line that was refused


class Lines:
    """One run of it: `chat`. `refused`: how many lines are not in the log."""

    def __init__(self, client: Client, peer: str, *, out: TextIO, err: TextIO) -> None:
        self.refused = 0
        self._client, self._peer, self._out, self._err = client, peer, out, err
        self._room = asyncio.Semaphore(AHEAD_MAX)
        self._unshown: set[str] = set()  # cids of lines that were sent from here
        self._is_shown = asyncio.Event()

    async def chat(self, source: AsyncIterator[str]) -> None:
        """Send every line of `source`. Raises Stopped where the client ends before."""
        try:
            await self._chat(source)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _chat(self, source: AsyncIterator[str]) -> None:
        async with self._client, asyncio.TaskGroup() as tasks:
            shower = tasks.create_task(self._show())
            async for body in source:
                if body.strip():
                    await self._room.acquire()
                    tasks.create_task(self._send(body))
            for _ in range(AHEAD_MAX):
                await self._room.acquire()
            with suppress(TimeoutError):
                async with asyncio.timeout(SHOWN_S):
                    while self._unshown:
                        self._is_shown.clear()
                        await self._is_shown.wait()
            shower.cancel()

    async def _send(self, body: str) -> None:
        cid = str(uuid.uuid4())
        self._unshown.add(cid)
        try:
            await self._client.send(self._peer, body, cid=cid)
        except ClientError as e:
            self._unshown.discard(cid)
            self.refused += 1
            self._err.write(f"chatd: not sent: {escaped(body[:QUOTED_MAX])}: {escaped(str(e))}\n")
        finally:
            self._room.release()

    async def _show(self) -> None:
        async for entry in self._client.entries():
            if entry.peer != self._peer:
                continue
            self._out.write(line(entry) + "\n")
            self._out.flush()
            if entry.cid is not None:
                self._unshown.discard(entry.cid)
                self._is_shown.set()


async def lines_of(stream: TextIO) -> AsyncIterator[str]:
    """The lines of a stream, without their ends.

    A thread reads them, one that nobody waits for: a person may never press Enter again.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[str | None] = asyncio.Queue(AHEAD_MAX)

    def read() -> None:
        with suppress(RuntimeError):  # the loop has ended
            for text in iter(stream.readline, ""):
                asyncio.run_coroutine_threadsafe(queue.put(text.rstrip("\r\n")), loop).result()
            asyncio.run_coroutine_threadsafe(queue.put(None), loop).result()

    threading.Thread(target=read, name="standard input", daemon=True).start()
    while (text := await queue.get()) is not None:
        yield text
