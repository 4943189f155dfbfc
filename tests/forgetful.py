"""A node that lets go of its conversations all the time: whatever names one must load it again.

    forgetful(node, seed)    from now on, after each request and each batch, now or in a moment

A node alone lets go of what nobody has used for a minute or two (core/unused.py). Here it is what
is not at work in that instant.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from chatd.core.conversation import Conversation
from chatd.ids import ConvId
from chatd.server import Node

LATER_S = 0.003  # a query takes about as long


class _All:
    """In place of core.unused.Unused."""

    def look(self, held: Mapping[ConvId, Conversation]) -> Iterator[Conversation]:
        return iter(list(held.values()))


def forgetful(node: Node, seed: int) -> None:
    """Let go of all that is not at work, at instants drawn from `seed`."""
    rng, loop = random.Random(seed), asyncio.get_running_loop()
    assert not node.registry.holds_all
    node.registry._unused = _All()  # type: ignore[assignment]

    def soon() -> None:
        chance = rng.random()
        if chance < 0.3:
            loop.call_soon(node.chat.life.release)
        elif chance < 0.6:
            loop.call_later(rng.random() * LATER_S, node.chat.life.release)
        elif chance < 0.7:
            node.chat.life.release()

    def after(what: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **keys: Any) -> Any:
            try:
                return what(*args, **keys)
            finally:
                soon()

        return wrapped

    # Not within a batch: the node lets go in a task of its own
    node.chat.handle = after(node.chat.handle)  # type: ignore[method-assign]
    node.pipeline.committed = after(node.pipeline.committed)  # type: ignore[method-assign]


async def forget(node: Node) -> None:
    """Let go of all that is not at work, once; cursors are written first."""
    await node.store.flush()
    let_go(node)


def let_go(node: Node) -> None:
    """Let go of all that is not at work, once."""
    unused, node.registry._unused = node.registry._unused, _All()  # type: ignore[assignment]
    node.chat.life.release()
    unused._round.clear()
    node.registry._unused = unused
