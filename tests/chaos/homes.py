"""Where a node of a world runs: in the world's loop, or apart, in a thread with a loop of its own
that can be held up, as SIGSTOP does to a process.

    await home.run(work)        what `work` gives; it runs in the node's loop
    home.look(at)               the same for a plain function, at once: what reads the node's maps
    await home.hold_up(s)       nothing of the node runs for so long: its sockets fill, its timers are late, its
                                lease ends

A pause of the world's own loop would hold up the servers' faults and all devices, so that nobody
was there to see what it does.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")
LOOK_S_MAX: Final = 20.0


class Home:
    """The world's loop."""

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        return await work

    def look(self, at: Callable[[], T]) -> T:
        return at()

    async def end(self) -> list[str]:
        """The node has stopped. Gives the tasks that are left."""
        return []


class Apart(Home):
    """A loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="a node apart", daemon=True)
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def look(self, at: Callable[[], T]) -> T:
        async def look() -> T:
            return at()

        return asyncio.run_coroutine_threadsafe(look(), self._loop).result(LOOK_S_MAX)

    async def hold_up(self, seconds: float) -> None:
        """Returns once it goes on."""
        self._loop.call_soon_threadsafe(time.sleep, seconds)
        await self.run(asyncio.sleep(0))

    async def end(self) -> list[str]:
        await self.run(self._loop.shutdown_asyncgens())
        left = self.look(
            lambda: [
                repr(task)
                for task in asyncio.all_tasks(self._loop) - {asyncio.current_task(self._loop)}
                if not task.done()
            ]
        )
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()
        return left
