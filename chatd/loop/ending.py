"""How tasks are ended: cancelled until they are.

One cancellation may not do. `asyncio.wait_for` of Python 3.11 keeps one that arrives together with
what it waits for, and psycopg's pool waits by it: a task that was to end with its node went on, and
the node waited for it for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

AGAIN_S: Final = 1.5  # longer than what a task does once it is cancelled, such as to close a subscription


async def cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Return once all have ended. What they raise is not of interest."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)
