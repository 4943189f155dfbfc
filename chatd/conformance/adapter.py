"""A client under test behind the line protocol: a program that speaks JSON on stdin and stdout.

    async with Adapter(command) as subject: await ClientRunner(subject).run(steps)

Each line is one JSON object. The kit writes what the application does (`do`), the adapter what it
sees (`event`); docs/conformance.md has both lists. Each vector gets a process of its own, so that
it starts from an empty state.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shlex
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Final, Self

from chatd.conformance.client_vectors import MAIN, known
from chatd.conformance.values import Frame, Mismatch, as_frame, as_int, as_list, as_text
from chatd.errors import ChatdError

READY_S: Final = 20.0  # until the program has started
END_S: Final = 3.0  # from `close` until it is killed
LINE_BYTES_MAX: Final = 1 << 20
LINES_KEPT: Final = 8  # of what it writes to stderr, for the reason of a failure
USER: Final = "alice"


class Adapter:
    """One process of the client under test; a `Subject`."""

    def __init__(self, command: str) -> None:
        self.name = command
        self.can: frozenset[str] = frozenset()
        self._failure: Mismatch | None = None
        self._words = shlex.split(command)
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._errors: deque[str] = deque(maxlen=LINES_KEPT)
        self._is_ready = False
        self._is_stopping = False
        self._news = asyncio.Event()
        self._entries: list[Frame] = []
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Frame]] = {}
        self._has_ended = False

    async def __aenter__(self) -> Self:
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=LINE_BYTES_MAX,
            )
        except OSError as e:
            raise ChatdError(f"--client: {self._words[0]} cannot be run: {e.strerror}") from None
        self._tasks = [asyncio.create_task(self._read(process)), asyncio.create_task(self._read_errors(process))]
        try:
            async with asyncio.timeout(READY_S):
                await self.unless_failed(self._until(lambda: self._is_ready))
        except (Mismatch, TimeoutError) as e:
            await self.stop()
            reason = str(e) or f"it wrote nothing within {READY_S:.0f} s"
            raise ChatdError(f"--client: {reason}; its first line must be `ready` (docs/conformance.md)") from e
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def unless_failed(self, running: Coroutine[None, None, None]) -> None:
        """Await it; raise Mismatch at once if the program ends, or writes what is no event."""
        task = asyncio.create_task(running)
        failing = asyncio.create_task(self._failing())
        try:
            await asyncio.wait([task, failing], return_when=asyncio.FIRST_COMPLETED)
            await (task if task.done() else failing)
        finally:
            for one in (task, failing):
                one.cancel()
            await asyncio.gather(task, failing, return_exceptions=True)

    async def _failing(self) -> None:
        await self._until(lambda: self._failure is not None)
        if self._failure is not None:
            raise self._failure

    # ---- Subject ---------------------------------------------------------------------------------

    async def start(self, url: str) -> None:
        """Tell it where to connect."""
        self._write({"do": "connect", "url": url, "user": USER, "token": "old", "new_token": "new"})

    def ask(self, what: str, keys: Frame) -> asyncio.Future[Frame]:
        """Tell it what the application does."""
        n = next(self._numbers)
        self._asked[n] = asyncio.get_running_loop().create_future()
        self._write({"do": what, "n": n, **keys})
        return self._asked[n]

    async def shown(self, count: int) -> list[Frame]:
        """Wait until it has given so many entries to the application."""
        await self._until(lambda: len(known(self._entries)) >= count)
        return known(self._entries)

    async def ended(self) -> None:
        """Wait until it has given up."""
        await self._until(lambda: self._has_ended)

    async def stop(self) -> None:
        """End the process: by `close`, then by the end of its input, then by a kill."""
        process = self._process
        if process is None:
            return
        self._process = None
        self._is_stopping = True
        if process.returncode is None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.write(b'{"do":"close"}\n')
                process.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- lines -----------------------------------------------------------------------------------

    def _write(self, line: Frame) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(json.dumps(line).encode() + b"\n")

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._news.clear()
            await self._news.wait()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        if process.stdout is None:
            return
        try:
            async for line in process.stdout:
                self._take(line)
            status = await process.wait()
            last = f": {self._errors[-1]}" if self._errors else ""
            self._fail(f"the client's program ended with status {status}{last}")
        except (Mismatch, ValueError, KeyError) as e:
            self._fail(f"a line of the client's program is not as docs/conformance.md says: {e}")

    async def _read_errors(self, process: asyncio.subprocess.Process) -> None:
        if process.stderr is not None:
            async for line in process.stderr:
                self._errors.append(line.decode(errors="replace").strip())

    def _fail(self, reason: str) -> None:
        if self._failure is None and not self._is_stopping:
            self._failure = Mismatch(reason)
            self._news.set()

    def _take(self, line: bytes) -> None:
        event = as_frame(json.loads(line))
        match event["event"]:
            case "ready":
                self.can = frozenset(as_text(word) for word in as_list(event["can"])) & MAIN.keys()
                self.name = as_text(event.get("name", self.name))
                self._is_ready = True
            case "entry":
                as_int(event["seq"])
                self._entries.append({key: value for key, value in event.items() if key != "event"})
            case "done" | "refused":
                asked = self._asked[as_int(event["n"])]
                if asked.done() and not asked.cancelled():
                    raise Mismatch(f"each `n` has one outcome: {event} is the second")
                if not asked.done():
                    asked.set_result(event)
            case "ended":
                self._has_ended = True
            case "log":
                self._errors.append(str(event.get("text", "")))
            case other:
                raise Mismatch(f"there is no event {other!r}")
        self._news.set()
