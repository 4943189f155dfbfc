"""What must be true of a node's maps whenever nothing is under way: who is held, who is linked, and counters back at nothing."""

from __future__ import annotations

import asyncio

from chatd.server import Node

QUIET_S = 20.0


def is_quiet(node: Node) -> bool:
    """Nothing waits for the database."""
    entrance = node.chat.entrance
    return not (
        node.store.pending
        or entrance._resolving
        or entrance._to_make
        or any(conv.gap is not None or conv.pending for conv in node.registry.convs.values())
        or any(session.reads for user in node.registry.users.values() for session in user.sessions.values())
    )


def wrong(node: Node) -> list[str]:
    """What is not as it must be."""
    registry = node.registry
    found = []
    for conv in registry.convs.values():
        holders = [user for id in {conv.a, conv.b} if (user := registry.users.get(id)) is not None]
        found += [
            f"conversation {conv.id} is not linked from {user.id}, who is held and loaded"
            for user in holders
            if user.loaded and conv.head and user.peers.get(conv.peer(user.id)) is not conv
        ]
        if not holders:
            found.append(f"conversation {conv.id} is held by nobody")
    for user in registry.users.values():
        found += [f"{user.id} has an old object of {conv.id}" for conv in user.peers.values() if registry.convs.get(conv.id) is not conv]
    if node.chat.entrance._resolving_n or node.chat.entrance._resolving_of:
        found.append("sends are counted as waiting for their conversation, and none does")
    return found


async def check_maps(node: Node) -> None:
    """Wait until the node is quiet, then compare."""
    async with asyncio.timeout(QUIET_S):
        while not is_quiet(node):
            await asyncio.sleep(0.01)
    assert wrong(node) == []
