"""Ends tasks: cancels them until they have ended.

One cancellation may not be enough. `asyncio.wait_for` of Python 3.11 swallows a cancellation that
arrives together with the result, and psycopg's pool uses it. So a task went on after it was
cancelled, and its node waited for it for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

AGAIN_S: Final = 1.5  # longer than the clean-up of a cancelled task, such as closing a subscription


async def cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and return when all have ended. Their exceptions are ignored."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)
