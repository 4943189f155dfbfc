"""The one loop of the tests that asks until something is so.

    await until(lambda: node.metrics.clock_steps >= 2)    polls, in the loop that runs
    row = await until(find_row, "the row is there")       a coroutine function may ask, too; gives what was true
    await until(lambda: done, changed=news)               asks again when the event is set, and polls nothing
    blocking_until(lambda: not path.exists())             without a loop

Polling is for what no event tells of: another process, a table, an attribute of the node. The bound
only ends a test that hangs: `Late` names the condition, by the text given or by the source of the
function.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, TypeVar, overload

T = TypeVar("T")
Text: TypeAlias = str | Callable[[], str] | None  # a function is called once it is too late

WITHIN_S: Final = 30.0  # far beyond what anything takes
TURNS: Final = 100  # of the loop before the first pause: most things take a few, and are over soon after
PAUSE_S_MIN: Final = 0.001
PAUSE_S_MAX: Final = 0.02


class Late(AssertionError):
    """It was not so within the bound."""


@overload
async def until(
    holds: Callable[[], Awaitable[T | None]],
    what: Text = ...,
    within_s: float = ...,
    *,
    changed: None = ...,
    pause_s: float | None = ...,
) -> T: ...


@overload
async def until(
    holds: Callable[[], T | None],
    what: Text = ...,
    within_s: float = ...,
    *,
    changed: asyncio.Event | None = ...,
    pause_s: float | None = ...,
) -> T: ...


async def until(
    holds: Callable[[], Any],
    what: Text = None,
    within_s: float = WITHIN_S,
    *,
    changed: asyncio.Event | None = None,
    pause_s: float | None = None,
) -> Any:
    """Ask until it holds; gives what `holds` gave.

    `pause_s`: between two questions, where one is dear.
    `changed` is set by whatever may make it true, and cleared here; it is not for
    coroutine functions, which could miss a change while they wait.
    """
    asked = 0
    bound = asyncio.timeout(within_s)
    try:
        async with bound:
            while True:
                if changed is not None:
                    changed.clear()
                found = holds()
                if inspect.isawaitable(found):
                    found = await found
                if found:
                    return found
                if changed is not None:
                    await changed.wait()
                elif pause_s is not None:
                    await asyncio.sleep(pause_s)
                else:
                    await asyncio.sleep(0 if asked < TURNS else _pause_s(asked - TURNS))
                    asked += 1
    except TimeoutError:
        if not bound.expired():
            raise
    raise Late(_text(holds, what, within_s))


def blocking_until(holds: Callable[[], T | None], what: Text = None, within_s: float = WITHIN_S) -> T:
    """The same where no loop runs."""
    deadline = time.monotonic() + within_s
    asked = 0
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise Late(_text(holds, what, within_s))
        time.sleep(_pause_s(asked))
        asked += 1
    return found


def _pause_s(asked: int) -> float:
    return min(PAUSE_S_MAX, PAUSE_S_MIN * (1 + asked / 4))


def _text(holds: Callable[[], object], what: Text, within_s: float) -> str:
    if what is None:
        try:
            what = inspect.getsource(holds).strip()
        except (OSError, TypeError):
            what = repr(holds)
    return f"not within {within_s:g} s: {what() if callable(what) else what}"
