"""An async iterator over whatever a coroutine gives next.

A class and no async generator: leaving a loop over one leaves nothing to clean up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Stream(Generic[T]):
    """`pull` waits for the next item; None ends the iteration.

    Several may iterate: each item goes to one of them.
    """

    __slots__ = ("_pull",)

    def __init__(self, pull: Callable[[], Awaitable[T | None]]) -> None:
        self._pull = pull

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        item = await self._pull()
        if item is None:
            raise StopAsyncIteration
        return item
