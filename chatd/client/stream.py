"""An async iterator over whatever a coroutine gives next.

A class and no async generator: leaving a loop over one leaves nothing to clean up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Turn:
    """Held by the one that waits: two that read one stream would each miss what the other gets."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._held = False

    def __enter__(self) -> None:
        if self._held:
            raise RuntimeError(f"{self._what} is read by another task already; each item goes to one reader")
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False


class Stream(Generic[T]):
    """`pull` waits for the next item; None ends the iteration.

    Several may iterate: each item goes to one of them. With a `turn`, that is an error.
    """

    __slots__ = ("_pull", "_turn")

    def __init__(self, pull: Callable[[], Awaitable[T | None]], turn: Turn | None = None) -> None:
        self._pull, self._turn = pull, turn

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._turn is None:
            item = await self._pull()
        else:
            with self._turn:
                item = await self._pull()
        if item is None:
            raise StopAsyncIteration
        return item
