"""What must be so once all is quiet, beside what tests/faults/checker.py and closes.py hold:
presence, cursors, lists, and the nodes' maps.

Each function gives sentences; none is right. `maps` looks into a node, all others at what devices
were told and at PostgreSQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import psycopg

from chatd.cluster.presence_reader import PresenceReader
from chatd.cluster.pubsub import PubSub
from chatd.core.session import State
from chatd.ids import UserId
from chatd.server import Node
from tests.chaos.device import Device, Life
from tests.faults.checker import Entry

Cursors = dict[tuple[str, str], tuple[int, int]]


def state_of(user: str, devices: Iterable[Device]) -> str:
    """How a user is to look: online if any device is, away if all are."""
    up = [device for device in devices if device.history.user == user and device.is_up]
    if not up:
        return "offline"
    return "away" if all(device.away for device in up) else "online"


def is_open(a: str, b: str, log: Mapping[str, Sequence[Entry]], who: Mapping[str, set[str]]) -> bool:
    if a == b:
        return True
    return any(
        users == {a, b} and {e.sender for e in log[c] if e.kind == "message"} == {a, b} for c, users in who.items()
    )


Looks = dict[tuple[str, str, int, str], str]


def looks(
    devices: Sequence[Device], lives: Sequence[Life], log: Mapping[str, Sequence[Entry]], who: Mapping[str, set[str]]
) -> Looks:
    """(user, device, connection, watched user) -> how that one is to look there."""
    lives_of = {id(device.life) for device in devices if device.is_up}
    # Whose old connection is half-open
    haunted = {life.user for life in lives if life.live_at and not life.ended_at and id(life) not in lives_of}
    return {
        (me, device.history.device, id(device.life), user): state_of(user, devices)
        if is_open(me, user, log, who)
        else "hidden"
        for device in devices
        if device.is_up
        for me in (device.history.user,)
        for user in device.watched
        if user not in haunted
    }


def presence(devices: Sequence[Device], right: Looks) -> Iterator[str]:
    """What devices were told, and is not so."""
    told = {id(device.life): device.presence for device in devices if device.is_up}
    for (me, device, life, user), state in right.items():
        v, seen = told[life].get(user, (0, "nothing"))
        if seen != state:
            yield f"{me}/{device} sees {user} as {seen} (v {v}), who is {state}"


def cursors(
    devices: Sequence[Device],
    stored: Cursors,
    log: Mapping[str, Sequence[Entry]],
    who: Mapping[str, set[str]],
    *,
    exact: bool,
) -> Iterator[str]:
    """Every device knows both sides' cursors as they are stored, and what it was answered is
    stored.

    Not `exact`: a node died with the last ones.

    Until both have sent, it knows nothing of the other's.
    """
    for device in devices:
        me = device.history.user
        for at, answered in device.moved.items():
            if exact and not _covers(stored.get(at, (0, 0)), answered):
                yield f"{me}/{device.history.device} was answered {answered} for {at}, stored is {stored.get(at)}"
        if not device.is_up:
            continue
        for at, cursor in stored.items():
            told = device.told.get(at, (0, 0))
            if me in who.get(at[0], ()) and at[1] != me and {e.sender for e in log[at[0]]} != who[at[0]]:
                if told != (0, 0):
                    yield f"{me}/{device.history.device} was told {told} for {at}, and was not answered"
            elif me in who.get(at[0], ()) and ((told != cursor) if exact else not _covers(told, cursor)):
                yield f"{me}/{device.history.device} was told {told} for {at}, stored is {cursor}"


def _covers(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] >= other[0] and one[1] >= other[1]


def lists(
    devices: Sequence[Device], log: Mapping[str, Sequence[Entry]], who: Mapping[str, set[str]], stored: Cursors
) -> Iterator[str]:
    """The lists of conversations that were just asked for."""
    for device in devices:
        me = device.history.user
        if not device.is_up:
            continue
        listed = {item["c"]: item for item in device.items}
        for c, users in who.items():
            if me not in users:
                continue
            item = listed.get(c)
            if item is None:
                yield f"{me}/{device.history.device} is not listed {c}"
                continue
            delivered, read = stored.get((c, me), (0, 0))
            unread = sum(e.kind == "message" and e.sender != me and e.seq > read for e in log[c])
            right = (len(log[c]), delivered, read, unread)
            if (item["head"], item["delivered"], item["read"], item["unread"]) != right:
                yield f"{me}/{device.history.device} is listed {item}, right is head, delivered, read, unread = {right}"


def haunted(lives: Sequence[Life]) -> Iterator[str]:
    """Sessions that should be gone: another of their device was welcomed later, and lived for long
    enough that all nodes heard of it.
    """
    for life in lives:
        if not life.ended_at and life.live_at:
            newer = [
                one
                for one in lives
                if (one.user, one.device) == (life.user, life.device) and one.hello_at > life.hello_at and one.live_at
            ]
            if any(not one.ended_at for one in newer):
                yield f"{life} is open still, and {newer[-1]} came after it"


def read_cursors(conn: psycopg.Connection[Any]) -> Cursors:
    rows = conn.execute(
        "SELECT v.id::text, v.a, v.b, coalesce(u.a_delivered, 0), coalesce(u.a_read, 0), coalesce(u.b_delivered, 0),"
        " coalesce(u.b_read, 0)"
        " FROM conversations v JOIN cursors u ON u.conv = v.id"
    ).fetchall()
    stored: Cursors = {}
    for c, a, b, a_delivered, a_read, b_delivered, b_read in rows:
        stored[c, a] = (a_delivered, a_read)
        if b != a:
            stored[c, b] = (b_delivered, b_read)
    return stored


# ---- inside a node -------------------------------------------------------------------------------


def maps(node: Node, heads: Mapping[str, int]) -> Iterator[str]:
    """What of a quiet node's maps does not fit together.

    `heads`: of all conversations, as PostgreSQL has them.
    """
    registry, users, convs = node.registry, node.registry.users, node.registry.convs
    for id, conv in convs.items():
        for one, other in ((conv.a, conv.b), (conv.b, conv.a)):
            if (user := users.get(one)) is not None and user.loaded and user.peers.get(other) is not conv:
                yield f"conversation {id} is held, and {one} who is loaded has no link to it"
        if conv.a not in users and conv.b not in users:
            yield f"conversation {id} is held by nobody"
        if conv.pending:
            yield f"conversation {id} has {conv.pending} pending"
        if conv.gap is not None:
            yield f"conversation {id} has a gap, {conv.gap.upto}"
        if conv.head != heads.get(str(id), 0):
            yield f"conversation {id} was delivered up to {conv.head}, the log has {heads.get(str(id), 0)}"
    for name, user in users.items():
        for peer, conv in user.peers.items():
            if convs.get(conv.id) is not conv or conv.peer(UserId(name)) != peer:
                yield f"{name} has a link to {peer} by {conv.id}, which is not held as that"
        yield from _sessions(name, user.sessions.values())
    if registry.sessions != sum(len(user.sessions) for user in users.values()):
        yield (
            f"{registry.sessions} sessions are counted, {sum(len(user.sessions) for user in users.values())} are there"
        )
    if set(registry._idle) != {name for name, user in users.items() if not user.sessions}:
        yield (
            f"idle are {set(registry._idle)}, without sessions"
            f" {[name for name, user in users.items() if not user.sessions]}"
        )
    yield from _work(node)
    yield from _presence(node)


def _sessions(name: str, sessions: Iterable[Any]) -> Iterator[str]:
    for session in sessions:
        facts = {
            "state": session.state is not State.LIVE,
            "behind": session.behind,
            "held": session.held,
            "reads": session.reads,
            "probing": session.order.probing,
            "moved": session.moved,
            "deferred": session.deferred,
        }
        if left := {key: value for key, value in facts.items() if value}:
            yield f"a session of {name} has {left}"


def _work(node: Node) -> Iterator[str]:
    making, gaps, store = node.chat.new_conversations, node.delivery.gaps, node.store
    facts: dict[str, Any] = {
        "waiting": making._waiting,
        "waiting_n": making.waiting,
        "waiting_of": making._waiting_of,
        "to_make": making._to_make,
        "makers": making._makers,
        "loads": node.chat.loading.under_way,
        "wait for a load": node.chat.waiting.sessions,
        "gaps": gaps._open,
        "fillers": gaps._fillers,
        "poked": gaps._poked,
        "looking": gaps._looking,
        "awaited": gaps._awaited,
        "pending": store.lanes.pending,
        "cursors": len(store.state_flush.cursors),
        "users": len(store.state_flush.users),
        "listings": node.services.listings.running,
        "reads": store.read_turns.running,
        "hellos": store.hello_turns.running,
        "outcome_unknown": [lane.is_outcome_unknown for lane in store.lanes.all if lane.is_outcome_unknown],
        "tasks": [task.get_coro() for task in node.tasks.spawned],
    }
    if node.cluster is not None:
        facts["shared limits"] = len(node.cluster.shared_limits.queue)
    if left := {key: value for key, value in facts.items() if value}:
        yield f"work is left: {left}"


def _presence(node: Node) -> Iterator[str]:
    there = {(name, device) for name, user in node.registry.users.items() for device in user.sessions}
    known = {(name, device) for name, one in node.presence._statuses.users.items() for device in one.devices}
    leaving = {name for name, one in node.presence._statuses.users.items() if one.leaving}
    if there != known:
        yield f"sessions are {there}, presence has {known}"
    if leaving:
        yield f"{leaving} are leaving still"
    watchers = {(session, user) for user, sessions in node.presence._watchers.items() for session in sessions}
    watching = {
        (session, user)
        for one in node.registry.users.values()
        for session in one.sessions.values()
        for user in session.watching
    }
    if watchers != watching:
        yield (
            f"{len(watchers - watching)} watch who are not there or do not, {len(watching - watchers)} are not among"
            " the watchers"
        )
    if node.cluster is not None:
        yield from channels(node.cluster.pubsub, node.cluster.presence_sync.reader, set(node.registry.users))


def channels(pubsub: PubSub, reader: PresenceReader, held: set[UserId]) -> Iterator[str]:
    """A node hears what is published for the users that it holds, and of those that it keeps."""
    presence = reader._presence
    wanted = {channel for channel in pubsub._wanted if channel.startswith(pubsub._user)}
    if wanted != {pubsub._user + user for user in held}:
        yield f"pub/sub wants {wanted}, held are {held}"
    kept, lingering = set(presence.kept_users()), reader._released | presence._released
    heard = pubsub._wanted - wanted
    if not set(map(pubsub.status_channel, kept)) <= heard:
        yield f"pub/sub hears of {heard}, kept are {kept}"
    if not heard <= set(map(pubsub.status_channel, kept | lingering)):
        yield f"pub/sub still hears of {heard}, kept are {kept}, let go {lingering}"
    if pubsub.up and (missing := pubsub._wanted - pubsub._confirmed):
        yield f"not subscribed to {missing}"


def seats(nodes: Iterable[Node]) -> Iterator[str]:
    """How each node has each user, for reading."""
    for node in nodes:
        cluster = node.cluster
        sync = None if cluster is None else cluster.presence_sync
        yield f"node {node._incarnation}: batch {sync._n if sync else ''}, knows {sync._leases.nodes if sync else ''}"
        for name, one in node.presence._statuses.users.items():
            yield (
                f"    {name}: {one.status} v {one.v}, here {one.devices}, leaving {one.leaving}, elsewhere {one.seats}"
            )


def failed(node: Node) -> Iterator[str]:
    """Has the node given up?"""
    if node.tasks.failed.done() and not node.tasks.failed.cancelled():
        yield f"the node has failed: {node.tasks.failed.exception()!r}"


def tasks_of_nobody(before: set[asyncio.Task[Any]]) -> list[str]:
    """Tasks that are there now and were not before."""
    return [repr(task) for task in asyncio.all_tasks() - before if not task.done()]
