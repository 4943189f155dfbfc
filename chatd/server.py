"""Makes the parts of a node and runs it from start to stop. Nothing else is decided here.

    start ─► (embedded PostgreSQL) ─► migrate ─► store ─► listen ─► ready
    serve    until SIGTERM, SIGINT, or the end of a task that must not end
    drain    no new connections ─► notice to clients ─► lanes are emptied, acks sent ─► close 1012
    stop     in the opposite order of start; the database last

A second signal ends the drain at once. The exit status is 0 only after a complete drain. The drain
itself is in `drain.py`; tasks are those of `loop/tasks.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import structlog

from chatd import log as logs
from chatd.chat.delivery import Delivery
from chatd.chat.handlers import Chat
from chatd.chat.keys_in_force import KeysInForce
from chatd.chat.new_conversations import NewConversations
from chatd.chat.ports import Admission, Alone, OtherNodes, OwnCount, Rates
from chatd.chat.presence_push import PresencePush
from chatd.chat.send import SendPipeline
from chatd.chat.send_log import SendLines
from chatd.chat.services import Services
from chatd.clock import Clock
from chatd.config import Settings
from chatd.core.conversations import Registry
from chatd.core.steady_time import Steady
from chatd.drain import Drain
from chatd.errors import ChatdError, CloseCode
from chatd.ids import UserId
from chatd.loop import ending
from chatd.loop.alarm import Alarm
from chatd.loop.pulse import Pulse
from chatd.loop.tasks import Tasks
from chatd.metrics import Metrics
from chatd.net import listen_errors
from chatd.net.access_log import AccessLog
from chatd.net.full_log import Crowd
from chatd.net.listener import Listener
from chatd.net.pages import Pages
from chatd.net.revocation import Revocation
from chatd.ops import sd_notify
from chatd.ops.admin import Admin
from chatd.ops.gauges import add_gauges
from chatd.ops.readiness import Readiness
from chatd.ops.user_view import about_user
from chatd.ops.worker_line import WorkerLine
from chatd.postgres import migrate, partitions
from chatd.postgres.census import Census
from chatd.postgres.embedded import Embedded
from chatd.postgres.embedded_owner import EmbeddedOwner
from chatd.postgres.watch import Fall, Latest
from chatd.presence import Presence
from chatd.store import Limits, Store

if TYPE_CHECKING:
    from chatd.cluster.node import Cluster

log = structlog.get_logger("server")

SYNC_READINGS: Final = 3  # the first on each connection of the pool takes two round trips
TICK_S: Final = 0.05  # how late a grace time may end; those that end within it are handled together
DATABASE_POLL_S: Final = 0.5


class Node:
    """One process of chatd. `run` is its whole life; tests call `start` and `stop` directly."""

    def __init__(self, settings: Settings, age_s: float = 0.0, line: WorkerLine | None = None) -> None:
        """`age_s`: how old the process is; a restart takes it again. `line`: of a worker."""
        self._line = line
        self.settings = settings
        self.port = 0
        self.admin_port = 0
        self._loop = asyncio.get_running_loop()
        self._clock = Clock(self._loop.time, time.time)
        self._pulse = Pulse()
        self._alarm = Alarm(self._clock.now)  # for `_tick`
        self.metrics = Metrics()
        self._owner: EmbeddedOwner | None = None
        self.tasks = Tasks()
        self._admin: Admin | None = None
        self._drain_grace_s = 0.0
        self._dropped = logs.dropped()
        self._age_s = age_s
        self._restart_ms = 0.0  # what the last start took
        self.on_ready: Callable[[], None] = lambda: None
        self._incarnation = os.urandom(8).hex()  # wire and Redis call it `boot`
        self.keys_in_force = KeysInForce(settings, self._clock, self.metrics)
        self._revocation: Revocation | None = None

    # ---- parts ----------------------------------------------------------------------------------

    def reload_keys(self) -> None:
        """Read the key file again (SIGHUP) and end the sessions of keys that are gone."""
        if self.port:
            sd_notify.reloading()
        if self.keys_in_force.reload() and self._revocation is not None:
            self._revocation.begin(self.keys_in_force.keys)
        if self.port:  # before that it is not ready
            sd_notify.ready()

    def token(self, user: UserId) -> str:
        """A signed token for `user`, for development and tests."""
        return self.keys_in_force.issue(user)

    chat: Chat
    listener: Listener
    cluster: Cluster | None = None

    def _make_parts(self, conninfo: str) -> None:
        s, metrics, clock = self.settings, self.metrics, self._clock
        self.registry = Registry(holds_all=s.redis_url is not None)
        self.store = Store(conninfo, Limits.of(s), metrics, s.database_replica_url)
        self.presence = Presence(s.presence_grace_ms / 1000, None if s.redis_url is None else self._incarnation)
        clock.stepped = self._clock_stepped
        self._steady = Steady(clock, s.lease_ms / 1000)
        presence_push = PresencePush(
            self.presence, self.registry, self.store, metrics, now=clock.now, now_ms=clock.now_ms,
            spawn=self.tasks.spawn, alarm=self._alarm,
        )  # fmt: skip
        others, admission = self._make_others(
            Rates(s.rate_messages, s.rate_per_ms / 1000, s.rate_penalties_max, s.new_conversations_per_hour)
        )
        self.delivery = Delivery(
            self.registry, self.store, metrics, now=clock.now, later=self._loop.call_later, spawn=self.tasks.spawn,
            presence_push=presence_push, others=others,
        )  # fmt: skip
        self.store.health.is_settling = lambda: self.store.lanes.is_outcome_unknown or self.delivery.gaps.is_settling
        access_log = AccessLog(metrics, self._incarnation, clock.now, names_proxies=bool(s.trusted_proxies))
        self.services = Services(
            s, self.store, self.presence, presence_push, others, admission, self.registry, metrics, clock,
            self._steady, self.keys_in_force, self.tasks, self.delivery, access_log,
        )  # fmt: skip
        self._make_chat(admission)
        self.store.moved, self.store.latest = self._log_moved, self._latest
        self.store.held = lambda: {conv.id: conv.head for conv in self.registry.convs.values()}
        if self.cluster is not None:
            self.cluster.attach(self.services, self.delivery, self.chat)
        pages = Pages.by(s, self.token)
        self.listener = Listener(self.services, self.chat, pages, access_log, self._loop)
        self._revocation = Revocation(self.listener.connections, now=clock.now, spawn=self.tasks.spawn)
        self.retention = partitions.Retention(
            self.store.opener, retention_s=s.retention_days * 86_400, partition_s=s.partition_s,
            ahead=s.partitions_ahead, metrics=metrics, held=lambda: self.registry.convs,
            floors=self.registry.raise_floors,
        )  # fmt: skip
        self.store.on_partition = self.retention.wake
        metrics.failures = self.store.health.counts
        self._make_census()
        self.readiness = Readiness(
            self.store, state=self._state, missing=self.retention.wake,
            redis=lambda: "" if self.cluster is None else self.cluster.redis_away(), spawn=self.tasks.spawn,
            now=clock.now,
        )  # fmt: skip
        add_gauges(metrics, self.listener, self.registry, self.presence, self.store, self.census, self.readiness)

    def _make_chat(self, admission: Admission) -> None:
        new_conversations = NewConversations(self.services)
        self.pipeline = SendPipeline(
            self.registry, self.store.lanes, admission, new_conversations, self.delivery,
            self.delivery.gaps.outcomes, self.metrics, SendLines(),
        )  # fmt: skip
        self.chat = Chat(self.services, self.pipeline, new_conversations, self._alarm)

    def _make_others(self, rates: Rates) -> tuple[OtherNodes, Admission]:
        """The ports to other nodes and to the rate limits: of this node alone, or over Redis."""
        if self.settings.redis_url is None:
            return Alone(), OwnCount(rates, self._clock.now)
        from chatd.cluster.node import Cluster  # a node without others saves redis-py's 10 MB

        self.cluster = Cluster(
            self.settings, self.store, self.presence, self.registry, self.metrics, rates=rates,
            incarnation=self._incarnation, facts=self._facts, clock=self._clock, steady=self._steady,
        )  # fmt: skip
        return self.cluster.relay, self.cluster.shared_limits

    def _make_census(self) -> None:
        s, presence_sync = self.settings, None if self.cluster is None else self.cluster.presence_sync
        self.census = Census(
            incarnation=self._incarnation,
            name=s.node_name or f"{socket.gethostname()}:{s.port}",
            now=self._clock.now,
            grace_s=0.0 if presence_sync is None else s.lease_ms * 1.5 / 1000,
            heard=frozenset if presence_sync is None else lambda: presence_sync.listed,
        )
        watch = self.store.watch
        watch.errand, watch.clock, watch.pulse = self.census, self._clock.sync, self._pulse

    def _facts(self) -> dict[str, object]:
        """The facts of this node that `chatd nodes` shows."""
        s = self.settings
        return {
            "port": self.port,
            "admin": [s.admin_host, self.admin_port],
            "sessions": self.registry.sessions,
            "users": len(self.presence),
        }

    def _log_moved(self, fall: Fall) -> None:
        """Drop what is in memory of the log: the database now holds another one.

        All sessions are closed; their clients reconnect and learn of the new epoch.
        """
        self.registry.forget_conversations()
        self.delivery.gaps.reset()
        if self.cluster is not None:
            self.cluster.log_moved()
        for connection in list(self.listener.connections):
            if connection.session is not None and connection.session.user is not None:
                connection.close(CloseCode.RESTART, "the log is another one: begin with its epoch")

    def _latest(self) -> Latest | None:
        conv = self.registry.latest
        return None if conv is None else Latest(conv.id, conv.head, conv.check >> 3)

    # ---- start ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the parts in order. `stop` undoes it, also after a start that failed half-way.

        Raises SettingError with a remedy, and what the database raises.
        """
        began = self._clock.now()
        conninfo = await self._start_database()
        self._make_parts(conninfo)
        await self._listen_admin()
        asked = self._clock.now()
        await self._await_database()
        began += self._clock.now() - asked  # the wait for the database is no part of a restart of this node
        applied = await asyncio.to_thread(migrate.migrate, self.store.opener.ordered())
        if applied:
            log.info("migrated", applied=applied)
        await self.store.learn_log()
        await self.retention.prepare()
        for n, work in enumerate(await self.store.start(self.pipeline)):
            self.tasks.watch(f"store {n}", work)
        for _ in range(SYNC_READINGS):
            await self._read_clock()
        if self.cluster is not None:
            await self.cluster.start()
            for name, work in self.cluster.tasks():
                self.tasks.watch(name, work)
            await self.cluster.settled()
        self.census.is_serving = True
        if self.settings.other_nodes == "refuse":
            await self.census.refuse()
        self.tasks.watch("retention", self.retention.run())
        self.tasks.watch("sweep", self._sweep())
        self.tasks.watch("tick", self._tick())
        s, line = self.settings, self._line
        if line is not None:
            line.take(self.listener.make_connection)
        # Last: from here on it has started. A worker's port is its supervisor's
        self.port = await self.listener.listen(s.host, s.port) if line is None else s.port
        self._restart_ms = (self._age_s + self._clock.now() - began) * 1000
        log.info("ready", host=self.settings.host, port=self.port, admin_port=self.admin_port or None)
        sd_notify.ready()
        self.on_ready()

    async def _await_database(self) -> None:
        """Wait while the database answers but cannot be used; `/readyz` says why.

        A standby before its promotion is one such case.
        """
        while reason := await self.store.usable():
            sd_notify.waiting(reason)
            await asyncio.sleep(DATABASE_POLL_S)

    async def _start_database(self) -> str:
        s = self.settings
        if s.database_url is not None:
            return s.database_url.get_secret_value()
        self._owner = EmbeddedOwner(Embedded(s.data_dir), self._postgres_restarted, self._pulse)
        conninfo = await self._owner.start()
        self.tasks.watch("embedded", self._owner.run())
        return conninfo

    def _postgres_restarted(self) -> None:
        self.metrics.postgres_restarts += 1

    async def _listen_admin(self) -> None:
        """The first port to listen: `/readyz` says why the node is not ready yet."""
        s = self.settings
        if s.admin_port >= 0:
            self._admin = Admin(self.metrics, self.readiness.problems, self._degraded, self._about)
            try:
                self.admin_port = await self._admin.start(s.admin_host, s.admin_port)
            except (OSError, UnicodeError) as e:
                raise listen_errors.refused("admin_", s.admin_host, s.admin_port, e) from e

    def _state(self) -> dict[str, str]:
        """The node's own reasons why it does not serve, by part: for `/readyz`."""
        problems = {}
        if not self.port:
            problems["starting"] = "this node does not serve yet"
        if self.pipeline.draining:
            problems["draining"] = "this node is on its way out"
        if self._owner is not None and self._owner.problem is not None:
            problems["database"] = self._owner.problem
        return problems

    def _degraded(self) -> dict[str, str]:
        return self.readiness.degraded() if self.port else {}

    def _about(self, user: UserId) -> dict[str, object]:
        """What this node knows of a user, for `chatd user show`."""
        facts = {
            **self._facts(),
            "boot": self._incarnation,
            "name": self.census.name,
            "problems": self.readiness.known(),
            "degraded": self._degraded(),
        }
        return {"node": facts, **about_user(self.registry, user, now=self._clock.now(), now_ms=self._clock.now_ms())}

    # ---- serve ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start, serve until a signal, drain, stop. Raises the error that ended the node."""
        stop = asyncio.Event()
        forced = asyncio.Event()
        left = 0
        for sig in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(sig, lambda: forced.set() if stop.is_set() else stop.set())
        self._loop.add_signal_handler(signal.SIGHUP, self.reload_keys)
        try:
            stopping = self._loop.create_task(stop.wait())
            starting = self._loop.create_task(self.start())
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():  # it may wait for the database without a bound
                await ending.cancelled([starting])
                return
            starting.result()
            waits: list[asyncio.Future[Any]] = [stopping, self.tasks.failed]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            sd_notify.stopping()
            if self._line is not None:
                self._line.leaving()
            if stopping.done():
                drain = self._loop.create_task(self.drain())
                force = self._loop.create_task(forced.wait())
                await asyncio.wait([drain, force], return_when=asyncio.FIRST_COMPLETED)
                for task in (drain, force):
                    task.cancel()
                left = self.store.lanes.pending
            stopping.cancel()
        finally:
            await self.stop()
        if forced.is_set():
            raise ChatdError("forced to stop before the drain was over")
        if left:
            raise ChatdError(
                f"{left} entries had no answer from the database when the drain was over; none of them was acked"
            )
        if self.tasks.failed.done():
            self.tasks.failed.result()

    async def _sweep(self) -> None:
        """Once a second: deadlines, heartbeats, expired tokens, users who left, the loop's lag.

        The lag is how late this runs. It is the only timer of an idle node (loop/pulse.py).
        """
        due, crowd = self._clock.now(), Crowd(self.settings.connections_max)
        while True:
            due = max(due + 1.0, self._clock.now())
            await asyncio.sleep(due - self._clock.now())
            self.metrics.loop_lag_s.observe(self._clock.now() - due)
            if step_ms := self._clock.watch():
                log.warning("host.clock_stepped", by_ms=step_ms)
            self._pulse.beat()
            self.listener.sweep()
            self.chat.life.release()
            self._report_dropped()
            crowd.look(len(self.listener.connections), self._clock.now())
            sd_notify.alive()
            if self._line is not None:
                self._line.report(len(self.listener.connections))

    def _report_dropped(self) -> None:
        lines, self._dropped = logs.dropped() - self._dropped, logs.dropped()
        if lines:
            self.metrics.log_lines_dropped += lines
            log.warning("log.dropped", lines=lines, reason="too many of one event, or nobody reads the log")

    async def _read_clock(self) -> None:
        """Take one reading of the database clock. Raises Unavailable, Overloaded."""
        asked = self._clock.now()
        self._clock.sync(await self.store.ping(), self._clock.now() - asked)

    def _clock_stepped(self, by_ms: int) -> None:
        self.metrics.clock_steps += 1
        log.warning(
            "clock.stepped",
            by_ms=by_ms,
            msg="PostgreSQL's clock was set, or it runs elsewhere now: tokens are judged by the new time",
        )
        self.presence.clock_stepped(self._clock.ahead_ms, self._clock.now_ms())
        self.retention.wake()  # another day may have begun

    async def _tick(self) -> None:
        """Handle what is due at the alarm's times, such as the end of a grace time."""
        while True:
            await self._alarm.rings(TICK_S)
            self.chat.tick()

    # ---- drain and stop -------------------------------------------------------------------------

    async def drain(self) -> None:
        """Let clients leave without a loss, within `drain_ms` (drain.py)."""
        self.census.is_serving = False  # the node that takes its place does not count it as another one
        self.pipeline.drain()
        self.listener.close()
        restart_ms = self._restart_ms if self.cluster is None else 0.0
        drain = Drain(
            self.chat, self.listener, self.store.lanes,
            drain_ms=self.settings.drain_ms, restart_ms=restart_ms, now=self._clock.now,
        )  # fmt: skip
        self._drain_grace_s = drain.grace_s
        await drain.run()

    async def stop(self) -> None:
        """Undo `start`. Idempotent."""
        if self._admin is not None:
            await self._admin.stop()
        if hasattr(self, "listener"):
            self.listener.close()
            for connection in list(self.listener.connections):
                connection.abort()
        await self.tasks.cancel()
        if self.cluster is not None:
            self.delivery.gaps.reset()
            await self.cluster.stop(self._drain_grace_s)
        if hasattr(self, "store"):
            await self.store.stop()
        if self._owner is not None:
            await self._owner.stop()
            self._owner = None
        if self.port:
            log.info("stopped")
