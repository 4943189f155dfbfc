"""A seam: hold a call back where it is made, see that it was reached, and let it go on.

gate = Gate(monkeypatch, place, "name")     calls of place.name wait for gate.open(); `await gate.reached.wait()`
                                            until there is one
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest


class Gate:
    """Holds a coroutine function back:

    `reached` is set when it is called, and it goes on after `open`. `only`: which calls, by their
    arguments.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, only: Callable[..., bool] = lambda *_, **__: True
    ) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()
        real = getattr(place, name)

        async def held(*args: Any, **kwargs: Any) -> Any:
            if only(*args, **kwargs):
                self.reached.set()
                await self.opened.wait()
            return await real(*args, **kwargs)

        monkeypatch.setattr(place, name, held)

    def open(self) -> None:
        self.opened.set()
