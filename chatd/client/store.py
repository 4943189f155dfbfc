"""Where a client keeps its state over restarts, and who writes it there.

    Store         what an app gives to `Client(store=...)`: load, save; a FileStore, a MemoryStore,
                  or a row of its own database
    StateKeeper   of one client: saves what has changed, one save at a time

The state counts an entry once the app has handled it. A process that is killed in between gets that
entry again. So an effect that must not happen twice needs a key that follows from the entry:
`entry.reply` has one.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import orjson

log = logging.getLogger("chatd.client")

State: TypeAlias = dict[str, Any]  # what `Client.state` gives, ready for JSON
SAVE_PAUSE_S: Final = 0.2  # between two saves that nobody waits for


class Store(Protocol):
    """Keeps the state of one client. Both may be coroutine functions. `close()`, if there is one,
    is called at the end.
    """

    def load(self) -> Mapping[str, Any] | Awaitable[Mapping[str, Any] | None] | None:
        """The state that was saved last; None: there is none."""

    def save(self, state: State) -> Awaitable[None] | None:
        """Keep it, wholly or not at all. When this has returned, it outlives the process."""


class StoreInUse(RuntimeError):
    """Another process has this store: two clients from one state would each do all the work."""


class MemoryStore:
    """For tests, and for clients that are made again within one process."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.state = state

    def load(self) -> Mapping[str, Any] | None:
        return self.state

    def save(self, state: State) -> None:
        self.state = state


class FileStore:
    """One file of JSON, replaced as a whole and synced to disk; readable by its owner alone.

    A lock beside it keeps a second process out, where the system has `flock`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: int | None = None

    def load(self) -> Mapping[str, Any] | None:
        """Raises StoreInUse, OSError, and ValueError for a file that holds no state."""
        self._claim()
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            state = orjson.loads(text)
        except orjson.JSONDecodeError as e:
            raise ValueError(f"{self.path} holds no state of a client: {e}; move it away to start anew") from None
        if not isinstance(state, dict):
            raise ValueError(f"{self.path} holds no state of a client; move it away to start anew")
        return state

    async def save(self, state: State) -> None:
        await asyncio.to_thread(self._write, orjson.dumps(state))

    def close(self) -> None:
        """Let another process have it. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _claim(self) -> None:
        if sys.platform == "win32" or self._lock is not None:  # nothing there keeps a second process out
            return
        import fcntl

        lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise StoreInUse(f"{self.path} is in use by another client") from None
        self._lock = lock

    def _write(self, text: bytes) -> None:
        fd, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)  # 0600
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
        with contextlib.suppress(OSError):  # a directory cannot be synced everywhere
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


class StateKeeper:
    """Saves what `snapshot` gives: soon after `changed`, and before `saved` returns."""

    def __init__(self, store: Store, snapshot: Callable[[], State]) -> None:
        self._store, self._snapshot = store, snapshot
        self._made = self._kept = 0  # numbers of changes: all, and those that are saved
        self._error: Exception | None = None  # of the last save
        self._to_save, self._urgent, self._news = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> Mapping[str, Any] | None:
        """The state of before. Raises what the store raises."""
        state = self._store.load()
        loaded = await state if inspect.isawaitable(state) else state
        self._task = asyncio.create_task(self._run(), name="chatd client state")
        return loaded

    def changed(self) -> None:
        """There is something to save."""
        self._made += 1
        self._to_save.set()

    async def saved(self) -> None:
        """Return once all that has changed so far is saved. Raises what the store raises."""
        until = self._made
        while self._kept < until:
            if self._task is None or self._task.done():
                return
            self._to_save.set()
            self._urgent.set()
            self._news.clear()
            await self._news.wait()
            if self._error is not None:
                raise self._error

    async def stop(self) -> None:
        """Save what is left. Raises what the store raises."""
        if self._task is None:
            return
        self._stopping = True
        self._to_save.set()
        self._urgent.set()
        await asyncio.wait([self._task])  # a save that is under way ends before the last one begins
        self._task = None
        self._news.set()
        try:
            if self._kept < self._made:
                await self._save()
        finally:
            close = getattr(self._store, "close", None)
            if close is not None and inspect.isawaitable(closing := close()):
                await closing

    async def _run(self) -> None:
        while True:
            await self._to_save.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SAVE_PAUSE_S):
                    await self._urgent.wait()
            if self._stopping:
                return
            self._to_save.clear()
            self._urgent.clear()
            try:
                await self._save()
            except Exception as e:  # the store is the app's, and may raise anything
                self._error = e
                log.error("the state of the client cannot be saved: %r", e)
            self._news.set()

    async def _save(self) -> None:
        until = self._made
        saving = self._store.save(self._snapshot())
        if inspect.isawaitable(saving):
            await saving
        self._kept, self._error = max(self._kept, until), None
