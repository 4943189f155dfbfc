"""The gauges of a node: values that are read when `/metrics` is asked for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from chatd.core.write_pacing import BUSY_TURN_S
from chatd.ops import descriptors

if TYPE_CHECKING:
    from chatd.core.conversations import Registry
    from chatd.metrics import Metrics
    from chatd.net.listener import Listener
    from chatd.ops.readiness import Readiness
    from chatd.postgres.census import Census
    from chatd.presence import Presence
    from chatd.store import Store


def add_gauges(
    metrics: Metrics,
    listener: Listener,
    registry: Registry,
    presence: Presence,
    store: Store,
    census: Census,
    readiness: Readiness,
) -> None:
    """Add the gauges of a node to its metrics."""
    gauge = metrics.gauge
    gauge("connections_now", "connections of this node", lambda: len(listener.connections))
    gauge("sessions_now", "sessions of this node: devices that have said hello", lambda: registry.sessions)
    gauge("users_online_now", "users with a session here, or in their grace time", lambda: len(presence))
    gauge(
        "nodes_unheard",
        "other nodes on this database that share no Redis with this one",
        lambda: len(census.unheard),
    )
    gauge("users_held", "users in memory", lambda: len(registry.users))
    gauge("conversations_held", "conversations in memory", lambda: len(registry.convs))
    gauge("tasks_now", "asyncio tasks", lambda: len(asyncio.all_tasks()))
    gauge(
        "turn_seconds",
        f"how long a turn of the loop takes; over {BUSY_TURN_S} output waits for more",
        lambda: listener.flusher.turn_s,
    )
    gauge(
        "database_up",
        "1 while PostgreSQL answers this node's reads and writes",
        lambda: store.health.trouble is None,
    )
    gauge(
        "reads_queued",
        "reads of clients that wait for their turn at the pool",
        lambda: store.read_turns.waiting,
    )
    gauge(
        "hellos_queued",
        "pages of hellos that wait for their turn at the pool",
        lambda: store.hello_turns.waiting,
    )
    gauge("postgres_connections", "connections to PostgreSQL that are open", lambda: store.opener.connections)
    gauge("lanes_pending", "entries that wait for a lane or are being written", lambda: store.lanes.pending)
    gauge("reads_in_use", "connections of the read pool in use by reads", lambda: store.read_pool.usage.in_use)
    gauge("reads_waiting", "reads that wait for a connection of the pool", lambda: store.read_pool.usage.waiting)
    if (replica := store.replica) is not None:
        gauge("replica_up", "1 while a replica answers that may be asked for history", lambda: replica.is_up)
        gauge(
            "replica_lag_bytes",
            "WAL that the replica had not replayed at the last look, once a second",
            lambda: max(0, store.watch.replay_floor.primary - replica.position),
        )
    gauge(
        "ready",
        "1 while this node serves, as far as is known without asking the database",
        lambda: not readiness.known(),
    )
    gauge("descriptors_open", "open descriptors of this process", descriptors.held)
    gauge("descriptors_max", "descriptors that this process may have open", descriptors.limit)
