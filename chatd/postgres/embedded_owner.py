"""Keeps the embedded PostgreSQL running: its owner starts it again whenever it has ended.

    start ─► run ──┬─ its process ended (killed, disk full, pg_ctl stop), or its socket is gone
                   │    ─► start it again, with back-off
                   └─ `problem` says why there is none, for /readyz
    stop

The address stays the same: all clients of it, workers and tools too, find the new server there. The
lock of the folder stays ours: no other process runs the cluster in between. No acked entry is lost:
it is durable in the cluster's files. Sessions outlive the restart; their sends get `unavailable` as
in any outage.

PostgreSQL itself restarts after the death of a child; only the end of the postmaster is handled
here. `Embedded` blocks and belongs to one thread: an executor of one. `stop` makes a start that is
under way give up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import structlog

from chatd.errors import SettingError
from chatd.loop.backoff import Backoff
from chatd.loop.pulse import Pulse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chatd.postgres.embedded import Embedded

log = structlog.get_logger("embedded")

# Without a beat of the node: how long a missing file of the server may go unnoticed
LOOK_S: Final = 1.25
# The same for the end of its process, where the system does not report it (macOS)
POLL_S: Final = 0.1
BACKOFF_FIRST_S: Final = 0.2
BACKOFF_MAX_S: Final = 5.0


class EmbeddedOwner:
    """`start`, then `run` as a task of the owner, then `stop`.

    `restarted` is called for each start that was tried again. `pulse`: a look is due at its beat.
    """

    def __init__(
        self, embedded: Embedded, restarted: Callable[[], None] = lambda: None, pulse: Pulse | None = None
    ) -> None:
        self.embedded = embedded
        self._pulse = pulse or Pulse()
        self.problem: str | None = None  # why there is no server
        self._restarted = restarted
        self._thread = ThreadPoolExecutor(1, "embedded")
        self._up_at = time.monotonic()
        self._stopped = False
        self._backoff = Backoff(random.Random(), BACKOFF_FIRST_S, BACKOFF_MAX_S)

    async def start(self) -> str:
        """Run the server; gives its conninfo, which does not change. Raises SettingError."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.embedded.start)

    async def run(self) -> None:
        """Keep the server running, for ever. Cancel it before `stop`."""
        while True:
            reason = await self._end()
            await self._again(reason, time.monotonic() - self._up_at)

    async def _end(self) -> str:
        """Wait until the server cannot serve any more; gives why."""
        over = asyncio.Event()
        with _on_end(self.embedded.pid, over.set) as is_reported:
            while (reason := self.embedded.ended()) is None:
                over.clear()
                with contextlib.suppress(TimeoutError):
                    async with self._pulse.rest(LOOK_S if is_reported else POLL_S):  # a socket's file may end, too
                        await over.wait()
        return reason

    async def _again(self, reason: str, served_s: float) -> None:
        gone_at = time.monotonic()
        while True:
            wait_s = self._backoff.wait_s(served_s)
            self.problem = f"the embedded PostgreSQL does not run: {reason}"
            log.error(
                "postgres.ended",
                reason=reason,
                served_s=round(served_s, 1),
                restart_in_s=round(wait_s, 1),
                log=str(self.embedded.log_file),
            )
            await asyncio.sleep(wait_s)
            self._restarted()
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self.embedded.restart)
            except SettingError as e:
                reason, served_s = str(e).removeprefix("data_dir: "), 0.0
            else:
                break
        self.problem, self._up_at = None, time.monotonic()
        log.warning("postgres.back", away_s=round(time.monotonic() - gone_at, 1))

    async def stop(self) -> None:
        """Stop the server. Idempotent."""
        if not self._stopped:
            self._stopped = True
            self.embedded.giving_up.set()
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, self.embedded.stop))
            self._thread.shutdown(wait=False)


@contextlib.contextmanager
def _on_end(pid: int, call: Callable[[], None]) -> Iterator[bool]:
    """Call `call` when a child process has ended that was not waited for.

    Gives False where the system does not report that: then the caller has to poll.
    """
    if not hasattr(os, "pidfd_open"):
        yield False
        return
    try:
        fd = os.pidfd_open(pid)
    except OSError:  # it was waited for, or the kernel is older than 5.3, or a sandbox forbids it
        yield False
        return
    loop = asyncio.get_running_loop()

    def over() -> None:
        loop.remove_reader(fd)  # it stays readable
        call()

    loop.add_reader(fd, over)
    try:
        yield True
    finally:
        loop.remove_reader(fd)
        os.close(fd)
