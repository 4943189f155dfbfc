"""What must hold between a node's maps: whoever changes one of them and not the others is found
here.

    await check_maps(node)   wait until the node is at rest, then compare; raises AssertionError with all that is wrong
    wrong(node)              what is wrong whatever the node is doing: these laws hold in every loop turn
    at_work(node)            what is under way

The laws: every held conversation is linked from each held, loaded user who is in it; what is linked
is the object that the registry holds; nobody is counted who is gone. At rest: nothing is queued,
nothing missing, nothing awaited, and every counter of work under way is back at its start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from chatd.core.conversations import Registry
from chatd.core.session import Session, State
from chatd.server import Node
from tests.until import Late, until

REST_S = 20.0  # far beyond what it takes


async def check_maps(node: Node, seconds: float = REST_S) -> None:
    """Wait until nothing is under way, then compare.

    What is still under way after `seconds` has leaked.
    """
    with contextlib.suppress(Late):
        await until(lambda: not at_work(node), within_s=seconds)
    found = [*wrong(node), *at_work(node)]
    assert not found, "\n".join(found)


def wrong(node: Node) -> list[str]:
    """What is wrong whatever the node is doing."""
    return [*_links(node.registry), *_holds(node.registry), *_sessions(node)]


def _links(registry: Registry) -> Iterator[str]:
    for conv in registry.convs.values():
        for id in {conv.a, conv.b}:
            user = registry.users.get(id)
            if user is not None and user.loaded and user.peers.get(conv.peer(id)) is not conv:
                yield f"conversation {conv.id} of {conv.a} and {conv.b} is held, and {id} lacks it"
    for user in registry.users.values():
        for peer, conv in user.peers.items():
            if registry.convs.get(conv.id) is not conv:
                yield f"{user.id} has an object for conversation {conv.id} that the registry does not hold"
            if user.id not in (conv.a, conv.b) or conv.peer(user.id) != peer:
                yield f"{user.id} has conversation {conv.id} of {conv.a} and {conv.b} under {peer}"


def _holds(registry: Registry) -> Iterator[str]:
    at_work = {id(conv) for conv in registry._busy}
    for conv in registry.convs.values():
        if conv.a not in registry.users and conv.b not in registry.users and id(conv) not in at_work:
            yield f"conversation {conv.id} is held by nobody and will never be dropped"
    for absent, empty in registry._empty.items():
        if absent in registry.users:
            yield f"{absent} is held, and conversations without entries still wait for them"
        for conv in empty.values():
            if registry.convs.get(conv.id) is not conv:
                yield f"conversation {conv.id} waits for {absent} and is not held"
    without = {user.id for user in registry.users.values() if not user.sessions}
    if without != set(registry._idle):
        yield f"users without a session: {sorted(without)}, on the way out: {sorted(registry._idle)}"
    if both := registry._kept.keys() & registry.users.keys():
        yield f"limits kept for users who are held: {sorted(both)}"


def _sessions(node: Node) -> Iterator[str]:
    registry = node.registry
    counted = sum(len(user.sessions) for user in registry.users.values())
    if registry.sessions != counted:
        yield f"{registry.sessions} sessions are counted, {counted} are there"
    ours = {id(c.session) for c in node.listener.connections if c.session is not None}
    for user in registry.users.values():
        for device, session in user.sessions.items():
            if session.state is State.CLOSED or session.user is not user or session.device != device:
                yield f"{user.id} has a session for {device} that is closed or another's"
            if id(session) not in ours:
                yield f"{user.id} has a session for {device} without a connection"


def at_work(node: Node) -> list[str]:
    """What is under way; a node at rest has nothing of it."""
    return [
        *_log_at_work(node),
        *_services_at_work(node),
        *(one for c in node.listener.connections if c.session for one in _session_at_work(c.session)),
    ]


def _log_at_work(node: Node) -> Iterator[str]:
    for conv in node.registry.convs.values():
        if conv.pending:
            yield f"conversation {conv.id} has {conv.pending} items pending"
        if conv.gap is not None:
            yield f"conversation {conv.id} has an open gap"
    for lane in node.store.lanes.all:
        if lane.queue.items or lane.busy or lane.rows_underway:
            yield f"lane {lane.number} has {len(lane.queue)} items queued and {lane.rows_underway} under way"
        if lane.is_outcome_unknown:
            yield f"lane {lane.number} has conversations of unknown outcome"
    gaps = node.delivery.gaps
    if gaps._open or gaps._poked or gaps._awaited or gaps._fillers or gaps._looking or gaps.outcomes._unknown:
        yield (
            f"gaps: {len(gaps._open)} open, {len(gaps._poked)} to look up, {len(gaps._awaited)} awaited,"
            f" {len(gaps.outcomes._unknown)} of unknown outcome, {gaps._fillers} fillers,"
            f" {'looking' if gaps._looking else 'not looking'}"
        )
    for name, behind in (("cursors", node.store.state_flush.cursors), ("users", node.store.state_flush.users)):
        if behind._flushing is not None:
            yield f"a flush of {name} is under way"


def _services_at_work(node: Node) -> Iterator[str]:
    making, services = node.chat.new_conversations, node.services
    if making._waiting or making._waiting_of or making.waiting or making._to_make or making._makers:
        yield (
            f"{len(making._waiting)} pairs and {making.waiting} sends ({dict(making._waiting_of)}) wait"
            " for a conversation,"
            f" {len(making._to_make)} to be made by {making._makers}"
        )
    if node.chat.loading.under_way or node.chat.waiting.sessions:
        yield (
            f"{node.chat.loading.under_way} conversations are looked for,"
            f" the requests of {node.chat.waiting.sessions} sessions wait"
        )
    for name, turns in (
        ("listings", services.listings),
        ("hellos", node.store.hello_turns),
        ("reads", node.store.read_turns),
    ):
        if turns.running or turns.waiting:
            yield f"{turns.running} {name} are under way, {turns.waiting} wait"
    for user in node.registry.users.values():
        if user.reads:
            yield f"{user.id} has {user.reads} reads under way"
    if services.settling:
        yield f"devices are being settled: {sorted(services.settling)}"
    if node.tasks.spawned:
        yield f"tasks are under way: {sorted(str(task.get_coro()) for task in node.tasks.spawned)}"


def _session_at_work(session: Session) -> Iterator[str]:
    who = f"session {session.device!r} of {session.user.id if session.user else None}"
    if session.reads:
        yield f"{who} has {session.reads} reads under way"
    if session.state is State.OPENING or session.deferred:
        yield f"{who} is being opened"
    if session.behind or session.held:
        yield f"{who} is behind in {sorted(session.behind or ())} and holds {len(session.held or ())} replies"
    if any(session.order.probing.values()):
        yield f"{who} has probes under way: {session.order.probing}"
