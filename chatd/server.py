"""A node: the list of its parts, and its life from start to stop. Nothing else is decided here.

    start ─► (embedded PostgreSQL) ─► migrate ─► store ─► listen ─► ready
    serve    until SIGTERM, SIGINT, or the end of a task that must not end
    drain    no new connections ─► notice to clients ─► what is in the lanes is committed and acked ─► close 1012
    stop     in the opposite order of start; the database last

A second signal forces. Exit status 0 only after a whole drain. Tasks are
those of loop/tasks.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import structlog

from chatd import log as logs
from chatd import protocol
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
from chatd.core.session import State
from chatd.core.steady_time import Steady
from chatd.errors import ChatdError, CloseCode
from chatd.ids import ConvId, UserId
from chatd.loop import ending
from chatd.loop.alarm import Alarm
from chatd.loop.pulse import Pulse
from chatd.loop.tasks import Tasks
from chatd.metrics import Metrics
from chatd.net import listen_errors
from chatd.net.access_log import AccessLog
from chatd.net.full_log import Crowd
from chatd.net.listener import RECEIVE_BYTES, UNSENT_BYTES, Listener
from chatd.net.pages import Pages
from chatd.net.revocation import Revocation
from chatd.ops import sd_notify
from chatd.ops.admin import Admin
from chatd.ops.gauges import add_gauges
from chatd.ops.readiness import Readiness
from chatd.ops.user_view import about_user
from chatd.postgres import migrate, partitions
from chatd.postgres.census import Census
from chatd.postgres.embedded import Embedded
from chatd.postgres.embedded_owner import EmbeddedOwner
from chatd.postgres.watch import Fall, Latest
from chatd.presence import Presence
from chatd.store import Limits, Store
from chatd.wire import framing

if TYPE_CHECKING:
    from chatd.cluster.node import Cluster

log = structlog.get_logger("server")

BACKLOG: Final = 4_096
SYNC_READINGS: Final = 3  # the first one on each of the pool's connections takes two round trips
TICK_S: Final = 0.05  # how late a grace time may end: those that end within it are one piece of work
DATABASE_POLL_S: Final = 0.5
DRAIN_MARGIN_MS: Final = 1_500  # of drain_ms, for closing the database and the process
HELLOS_S_MAX: Final = 3.0  # a drain waits for those under way, which get their notice behind the welcome
DRAIN_GRACE_S: Final = 5.0  # after a notice its delay and this much: nobody looks offline for an upgrade
NOTICE_MS_PER_CLIENT: Final = 1.0  # reconnects are spread over so much time for each client
NOTICE_MS_MIN: Final = 200.0
NOTICE_MS_MAX: Final = 5_000
# Of a lone node's last start: the drain comes before the next, and a busy machine takes longer
RESTART_MARGIN: Final = 1.5


class Node:
    """One process of chatd. `run` is its whole life; tests call `start` and `stop` themselves."""

    def __init__(self, settings: Settings, age_s: float = 0.0) -> None:
        """`age_s`: how long the process took to come this far, which a restart takes again."""
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
        self._server: asyncio.Server | None = None
        self._admin: Admin | None = None
        self._drain_grace_s = 0.0
        self._dropped = logs.dropped()
        self._age_s = age_s
        self._restart_ms = 0.0  # what the last start took
        self.on_ready: Callable[[], None] = lambda: None
        self._incarnation = os.urandom(8).hex()  # this life of the node, among others
        self.keys_in_force = KeysInForce(settings, self._clock, self.metrics)
        self._revocation: Revocation | None = None

    # ---- parts -----------------------------------------------------------------------------------

    def reload_keys(self) -> None:
        """Read the key file again (SIGHUP): sessions of keys that are gone end. A wrong file
        changes nothing.
        """
        if self.port:
            sd_notify.reloading()
        if self.keys_in_force.reload() and self._revocation is not None:
            self._revocation.begin(self.keys_in_force.keys)
        if self.port:  # before, it would not be true
            sd_notify.ready()

    def token(self, user: UserId) -> str:
        """A token for development and tests."""
        return self.keys_in_force.issue(user)

    chat: Chat
    listener: Listener
    cluster: Cluster | None = None

    def _make_parts(self, conninfo: str) -> None:
        s, metrics, clock = self.settings, self.metrics, self._clock
        self.registry = Registry()
        self.store = Store(conninfo, _store_limits(s), metrics)
        self.presence = Presence(s.presence_grace_ms / 1000, None if s.redis_url is None else self._incarnation)
        clock.stepped = self._clock_stepped
        self._steady = Steady(clock, s.lease_ms / 1000)
        presence_push = PresencePush(
            self.presence,
            self.registry,
            self.store,
            metrics,
            now=clock.now,
            now_ms=clock.now_ms,
            spawn=self.tasks.spawn,
            alarm=self._alarm,
        )
        others, admission = self._make_others(
            Rates(s.rate_messages, s.rate_per_ms / 1000, s.rate_penalties_max, s.new_conversations_per_hour)
        )
        self.delivery = Delivery(
            self.registry,
            self.store,
            metrics,
            now=clock.now,
            spawn=self.tasks.spawn,
            presence_push=presence_push,
            others=others,
        )
        self.store.health.is_settling = lambda: self.store.lanes.is_outcome_unknown or self.delivery.gaps.is_settling
        access_log = AccessLog(metrics, self._incarnation, clock.now, names_proxies=bool(s.trusted_proxies))
        self.services = Services(
            s,
            self.store,
            self.presence,
            presence_push,
            others,
            admission,
            self.registry,
            metrics,
            clock,
            self._steady,
            self.keys_in_force,
            self.tasks,
            self.delivery,
            access_log,
        )
        self._make_chat(admission)
        self.store.moved, self.store.held = (
            self._log_moved,
            lambda: {conv.id: conv.head for conv in self.registry.convs.values()},
        )
        self.store.latest = self._latest
        if self.cluster is not None:
            self.cluster.attach(self.services, self.delivery, self.chat)
        pages = Pages(self.token if s.development else None, remote=s.allow_remote_dev)
        self.listener = Listener(self.services, self.chat, pages, access_log, self._loop)
        self._revocation = Revocation(self.listener.connections, now=clock.now, spawn=self.tasks.spawn)
        self.retention = partitions.Retention(
            self.store.opener,
            retention_s=s.retention_days * 86_400,
            partition_s=s.partition_s,
            ahead=s.partitions_ahead,
            metrics=metrics,
            held=lambda: self.registry.convs,
            floors=self._floors,
        )
        self.store.on_partition = self.retention.wake
        metrics.failures = self.store.health.counts
        self._make_census()
        self.readiness = Readiness(
            self.store,
            state=self._state,
            missing=self.retention.wake,
            redis=self._redis_away,
            spawn=self.tasks.spawn,
            now=clock.now,
        )
        add_gauges(metrics, self.listener, self.registry, self.presence, self.store, self.census, self.readiness)

    def _make_chat(self, admission: Admission) -> None:
        new_conversations = NewConversations(self.services)
        self.pipeline = SendPipeline(
            self.registry, self.store.lanes, admission, new_conversations, self.delivery, self.metrics, SendLines()
        )
        self.chat = Chat(self.services, self.delivery, self.pipeline, new_conversations, self._alarm)

    def _make_others(self, rates: Rates) -> tuple[OtherNodes, Admission]:
        """What other nodes are to this one, by whether there is a Redis."""
        if self.settings.redis_url is None:
            return Alone(), OwnCount(rates, self._clock.now)
        from chatd.cluster.node import Cluster  # a single node does without redis-py's 10 MB

        self.cluster = Cluster(
            self.settings,
            self.store,
            self.presence,
            self.registry,
            self.metrics,
            rates=rates,
            incarnation=self._incarnation,
            facts=self._facts,
            clock=self._clock,
            steady=self._steady,
        )
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
        """What `chatd nodes` shows."""
        s = self.settings
        return {
            "port": self.port,
            "admin": [s.admin_host, self.admin_port],
            "sessions": self.registry.sessions,
            "users": len(self.presence),
        }

    def _log_moved(self, fall: Fall) -> None:
        """The log is another one: what is in memory of the one before is dropped, and all sessions
        begin again.
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

    def _floors(self, floors: list[tuple[ConvId, int]]) -> None:
        """Retention raised these floors."""
        for conv_id, floor in floors:
            conv = self.registry.convs.get(conv_id)
            if conv is not None:
                conv.floor = max(conv.floor, floor)

    # ---- start -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring everything up, in order; raises SettingError with a remedy.

        `stop` undoes it, also when it failed half-way.
        """
        began = self._clock.now()
        conninfo = await self._start_database()
        self._make_parts(conninfo)
        await self._listen_admin()
        asked = self._clock.now()
        await self._await_database()
        began += self._clock.now() - asked  # that was another's restart
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
        await self._listen()
        self._restart_ms = (self._age_s + self._clock.now() - began) * 1000
        log.info("ready", host=self.settings.host, port=self.port, admin_port=self.admin_port or None)
        sd_notify.ready()
        self.on_ready()

    async def _await_database(self) -> None:
        """Wait while the database answers and cannot be used, such as a standby before its
        promotion; `/readyz` tells why.
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

    async def _listen(self) -> None:
        s = self.settings
        try:
            self._server = await self._loop.create_server(
                self.listener.make_connection,
                s.host,
                s.port,
                backlog=BACKLOG,
                reuse_address=True,
                reuse_port=sd_notify.is_worker(),
            )
        except (OSError, UnicodeError) as e:
            raise listen_errors.refused("", s.host, s.port, e) from e
        for one in self._server.sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)  # what is accepted inherits it
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)  # likewise
        self.port = self._server.sockets[0].getsockname()[1]  # last: from here on it has started

    async def _listen_admin(self) -> None:
        """First of all: who asks before the node is ready hears why it is not."""
        s = self.settings
        if s.admin_port >= 0:
            self._admin = Admin(self.metrics, self._readiness, self._degraded, self._about)
            try:
                self.admin_port = await self._admin.start(s.admin_host, s.admin_port)
            except (OSError, UnicodeError) as e:
                raise listen_errors.refused("admin_", s.admin_host, s.admin_port, e) from e

    def _state(self) -> dict[str, str]:
        """What keeps this node from serving that is its own affair, by part."""
        problems = {}
        if not self.port:
            problems["starting"] = "this node does not serve yet"
        if self.chat.draining:
            problems["draining"] = "this node is on its way out"
        if self._owner is not None and self._owner.problem is not None:
            problems["database"] = self._owner.problem
        return problems

    async def _readiness(self) -> dict[str, str]:
        """For `/readyz`."""
        return await self.readiness.problems()

    def _degraded(self) -> dict[str, str]:
        return self.readiness.degraded() if self.port else {}

    def _redis_away(self) -> str:
        """Why this node does not hear the others; empty: it does, or there are none."""
        cluster = self.cluster
        if cluster is None or (cluster.pubsub.up and not cluster.presence_sync.stale):
            return ""
        return "Redis is away: entries of other nodes come by PostgreSQL within a second, presence of their users may be old"

    def _about(self, user: UserId) -> dict[str, object]:
        """For `chatd user show`: what this node knows of a user."""
        facts = {
            **self._facts(),
            "boot": self._incarnation,
            "name": self.census.name,
            "problems": self.readiness.known(),
            "degraded": self._degraded(),
        }
        return {"node": facts, **about_user(self.registry, user, now=self._clock.now(), now_ms=self._clock.now_ms())}

    # ---- serve -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start, serve until a signal, drain, stop. Raises what made it fail."""
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
            if not starting.done():  # it may wait for the database for ever
                await ending.cancelled([starting])
                return
            starting.result()
            waits: list[asyncio.Future[Any]] = [stopping, self.tasks.failed]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            sd_notify.stopping()
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
        """Once a second: deadlines, heartbeats, tokens, users who are gone; and how late this runs
        is the loop's lag.

        It is the one timer of a node that is idle (loop/pulse.py).
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
            self.chat.release()
            self._tell_dropped()
            crowd.look(len(self.listener.connections), self._clock.now())
            sd_notify.alive()

    def _tell_dropped(self) -> None:
        lines, self._dropped = logs.dropped() - self._dropped, logs.dropped()
        if lines:
            self.metrics.log_lines_dropped += lines
            log.warning("log.dropped", lines=lines, reason="too many of one event, or nobody reads the log")

    async def _read_clock(self) -> None:
        """Raises Unavailable, Overloaded."""
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
        """What is due at a time of its own."""
        while True:
            await self._alarm.rings(TICK_S)
            self.chat.tick()

    # ---- drain and stop --------------------------------------------------------------------------

    async def drain(self) -> None:
        """Let clients go without losing anything: within `drain_ms`."""
        s = self.settings
        deadline = self._clock.now() + max(0, s.drain_ms - DRAIN_MARGIN_MS) / 1000
        log.info("drain.begun", connections=len(self.listener.connections), pending=self.store.lanes.pending)
        self.census.is_serving = False  # the node that takes its place does not count it as another one
        self.chat.drain()
        if self._server is not None:
            self._server.close()
        first_ms, last_ms = self._notice_ms()
        self._drain_grace_s = self.chat.grace_s = last_ms / 1000 + DRAIN_GRACE_S
        notice = self.chat.notice = lambda: protocol.frame(
            "notice", kind="drain", retry_ms=int(random.uniform(first_ms, last_ms))
        )
        for connection in list(self.listener.connections):
            if (session := connection.session) is not None and session.state is State.LIVE:
                connection.send(framing.encode_text(notice()))
        await self._until(self.chat.hellos_done(), min(deadline, self._clock.now() + HELLOS_S_MAX))
        await self._until(self.chat.sends_queued(), deadline)
        await self._until(self.store.lanes.idle(), deadline)
        for connection in list(self.listener.connections):
            if connection.session is None:
                connection.abort()
            connection.close(CloseCode.RESTART, "restart")
        await self._until(self.listener.empty.wait(), deadline)
        log.info("drain.done", left=len(self.listener.connections), pending=self.store.lanes.pending)

    def _notice_ms(self) -> tuple[float, float]:
        """When clients are to come back, at the earliest and at the latest: at once if other nodes
        serve, else when this one is there again.
        """
        window_ms = min(NOTICE_MS_MAX, max(NOTICE_MS_MIN, len(self.listener.connections) * NOTICE_MS_PER_CLIENT))
        alone_ms = min(NOTICE_MS_MAX, self._restart_ms * RESTART_MARGIN) if self.cluster is None else 0.0
        return alone_ms, alone_ms + window_ms

    async def _until(self, event: Coroutine[Any, Any, object], deadline: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await event

    async def stop(self) -> None:
        """Undo `start`. Idempotent."""
        if self._server is not None:
            self._server.close()
        if self._admin is not None:
            await self._admin.stop()
        if hasattr(self, "listener"):
            for connection in list(self.listener.connections):
                connection.abort()
        await self.tasks.cancel()
        if self.cluster is not None:
            await self.cluster.stop(self._drain_grace_s)
        if hasattr(self, "store"):
            await self.store.stop()
        if self._owner is not None:
            await self._owner.stop()
            self._owner = None
        if self.port:
            log.info("stopped")


def _store_limits(s: Settings) -> Limits:
    return Limits(
        lanes=s.lanes,
        batch_rows_max=s.batch_rows_max,
        lane_queue_max=s.lane_queue_max,
        lane_deadline_ms=s.lane_deadline_ms,
        pool_max=s.pool_max,
        reads_queue_max=s.reads_queue_max,
        edit_window_ms=s.edit_window_ms,
        cursor_flush_ms=s.cursor_flush_ms,
        feed=s.redis_url is not None,
    )
