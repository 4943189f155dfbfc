"""An event loop in a thread of its own, and calls into it that Ctrl-C may interrupt at any step.

    call ──► start ──► the coroutine ends ──► the lock is freed ──► call returns, or raises
      └────► cancel ──────────┘     if what waits is interrupted

A KeyboardInterrupt comes between any two steps of the main thread's Python code. In the middle of a
`threading.Condition`, which a Future and an Event wait by, it can leave the Condition's lock held:
then the loop waits for that lock for ever, and so does every later call. So a thread that waits
shares with the loop only what one step of C changes: a plain lock, a set, `call_soon_threadsafe`.
All else of a call happens in the loop's thread, which no signal interrupts.

What is interrupted anywhere in `call` is cancelled, also where it was not handed over yet. The
thread is a daemon, and each wait for its end has a bound, so no process waits for it at exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

CANCEL_S: Final = 5.0  # longest wait of an interrupted call for the end of its coroutine: a `close` ends a connection
STOP_S: Final = 1.0  # longest wait for the end of the thread


class _Call(Generic[T]):
    """One call. `start`, `cancel`, `abandon` run in the loop's thread, the rest where it waits."""

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self._function = function
        self._task: asyncio.Task[T] | None = None
        self._results: list[T] = []
        self._error: BaseException | None = None
        self.is_over = False
        self._waiting = threading.Lock()  # held until it is over
        self._waiting.acquire()

    def start(self) -> None:
        async def work() -> T:
            return await self._function()

        self._task = asyncio.get_running_loop().create_task(work())
        self._task.add_done_callback(self._done)

    def cancel(self) -> None:
        if self._task is None:
            self.abandon()
        else:
            self._task.cancel()

    def abandon(self) -> None:
        """The loop has no turn left for it."""
        if not self.is_over:
            self._error = _closed()
            self._end()

    def _done(self, task: asyncio.Task[T]) -> None:
        if self.is_over:
            return
        if task.cancelled():
            self._error = _closed()
        elif (error := task.exception()) is not None:
            self._error = error
        else:
            self._results.append(task.result())
        self._end()

    def _end(self) -> None:
        self.is_over = True
        self._waiting.release()

    def wait(self, within_s: float | None = None) -> None:
        """Until it is over. Raises TimeoutError."""
        if not self._waiting.acquire(timeout=-1 if within_s is None else within_s):
            raise TimeoutError

    def outcome(self) -> T:
        """What the coroutine returned; raises what it raised."""
        error, self._error = self._error, None  # a traceback holds this frame: no cycle
        if error is not None:
            raise error
        return self._results[0]


class LoopThread:
    """Create, `start`, `call` from any other thread, `stop`."""

    def __init__(self, name: str) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None  # made in the thread: that takes locks, of `logging`
        self._failure: BaseException | None = None  # why there is none
        self._begun = threading.Lock()  # held until there is one
        self._begun.acquire()
        self._stopping = asyncio.Event()
        self._calls: set[_Call[Any]] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.stopped = False  # `stop` was called: no further calls

    def start(self) -> None:
        """Start the loop. If this is interrupted, `stop` it: it may run, or begin to later."""
        self._thread.start()
        self._begun.acquire()
        if self._failure is not None:
            raise self._failure

    def check(self) -> None:
        """Raise RuntimeError where nothing may wait: in the thread itself, and after `stop`."""
        if self.stopped or threading.get_ident() == self._thread.ident:
            raise _closed()

    def call(self, function: Callable[[], Awaitable[T]], *, within_s: float | None = None) -> T:
        """What the coroutine of `function` returns, which is called in the loop.

        What interrupts the wait cancels the coroutine, and is raised once that has ended. After
        `within_s` it is cancelled as well: TimeoutError. Raises RuntimeError as `check`.
        """
        self.check()
        call = _Call(function)
        try:
            self._calls.add(call)
            self._soon(call.start)
            call.wait(within_s)
        except BaseException:
            if not call.is_over:
                with contextlib.suppress(TimeoutError, RuntimeError):
                    self._soon(call.cancel)
                    call.wait(CANCEL_S)
            raise
        finally:
            self._calls.discard(call)
        return call.outcome()

    def stop(self) -> None:
        """End the loop, with every task in it, and the thread. Idempotent."""
        self.stopped = True
        if self._loop is not None:  # else it sees `stopped` once it has one
            with contextlib.suppress(RuntimeError):
                self._soon(self._stopping.set)
        if self._thread.is_alive():  # one whose start was interrupted ends as soon as it runs
            self._thread.join(STOP_S)

    def _soon(self, function: Callable[[], None]) -> None:
        if self._loop is None:
            raise _closed()
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            raise _closed() from None

    def _run(self) -> None:
        runner = asyncio.Runner()
        try:
            self._loop = runner.get_loop()
        except BaseException as e:  # of the machine: no descriptors are left
            self._failure = e
            return
        finally:
            self._begun.release()
        try:
            with runner:
                if not self.stopped:
                    runner.run(self._until_stopped())
        finally:
            for call in list(self._calls):  # handed over in between, by another thread
                call.abandon()

    async def _until_stopped(self) -> None:
        await self._stopping.wait()


def _closed() -> RuntimeError:
    return RuntimeError("this client is closed, or is called from its own thread, where nothing may wait")
