"""The result of a call within a deadline, although the loop was busy when it arrived.

A loop that was busy for longer than the deadline finds two things at once: the timer, and what has
arrived. Timers come first. So the call has `READ_TURNS` loop turns past its deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

READ_TURNS: Final = 4


async def within(seconds: float, call: Coroutine[Any, Any, T]) -> T:
    """The call's result. Raises TimeoutError at the deadline: the call is cancelled then."""
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait((task,), timeout=seconds)
        for _ in range(READ_TURNS):
            if task.done():
                break
            await asyncio.sleep(0)
        if task.done():
            return task.result()
        raise TimeoutError
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
