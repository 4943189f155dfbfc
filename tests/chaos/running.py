"""How a world is run: the waits of the code are shortened, the clocks of PostgreSQL and Redis step
as the injector says, what is logged is kept.

    findings = await run(world)       what is wrong; none is right
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import structlog

from chatd.clock import Clock
from chatd.cluster.redis.client import RedisClient, Script
from tests.chaos import closes, limits
from tests.chaos.injector import Injector, installed
from tests.chaos.world import World

# A folder: findings, the plan and the nodes' logs of each seed that fails are written there
TRACE_VARIABLE: Final = "CHAOS_TRACE"
CONNECT_S: Final = 0.5
CLOCK_KEY: Final = "chaos:clock"  # in Redis: how far its clock is off, in s

# The same waits in the same relations, shorter.
HURRIED: Final = (
    ("core.conversations", "LINGER_S", 0.4),
    ("postgres.read_pool", "READ_TIMEOUT_S", 0.4),
    ("postgres.read_pool", "READ_RETRY_MS", 60),
    ("postgres.change_feed_reader", "DEADLINE_S", 0.6),
    ("chat.gap_fill", "FILL_RETRY_S", 0.06),
    ("chat.resync", "FILL_RETRY_S", 0.06),
    ("cluster.node", "FEED_S", 0.25),
    ("cluster.node", "FEED_AWAY_S", 0.05),
    ("chat.listing", "OPEN_RETRY_MS", 60),
    ("chat.send_errors", "RETRY_MS", 60),
    ("chat.new_conversations", "RETRY_MS", 60),
    ("cluster.shared_limits", "PROBE_S", 0.2),
    ("cluster.shared_limits", "PROBE_MAX_S", 0.5),
    ("cluster.pubsub", "PING_S", 0.25),
    ("cluster.pubsub", "PUBLISH_S", 0.3),
    ("cluster.pubsub", "BACKOFF_MAX_S", 0.2),
    ("cluster.presence_keys", "CALL_S", 0.3),
    ("cluster.presence_reader", "HEARD_S", 0.03),
    ("cluster.presence_reader", "LINGER_S", 0.4),
    ("postgres.lane_connection", "BACKOFF_MAX_S", 0.2),
    ("cluster.change_feed", "BACKOFF_MAX_S", 0.2),
    ("postgres.watch", "LOOK_S", 0.2),
    ("postgres.watch", "DEADLINE_S", 0.6),
    ("cluster.redis.client", "RENEW_S", 0.05),
    ("drain", "GRACE_S", 1.0),
    ("cluster.shared_limits", "HOUR_S", limits.HOUR_S),
    ("core.rate_limit", "LONG_S", limits.HOUR_S / 2),
    ("core.rate_limit", "ASK_AGAIN_S", 0.1),
)


async def run(world: World) -> list[str]:
    """The findings; those of the maps, the logs and the tasks included."""
    world.injector.script_offset_key = CLOCK_KEY
    with (
        _hurried(world.injector),
        installed(world.injector),
        limits.watched(world.outages, time.monotonic),
        closes.installed(world.closes),
        structlog.testing.capture_logs() as logs,
    ):
        world.logs = logs
        tasks = asyncio.all_tasks()
        findings = await world.run()
    findings += [f"logged: {line}" for line in logs if line["event"].endswith((".bug", ".died"))]
    findings += [f"a task is left: {task!r}" for task in asyncio.all_tasks() - tasks if not task.done()]
    findings += [f"a task is left: {task}" for task in world.left]
    if (folder := os.environ.get(TRACE_VARIABLE)) and findings:
        Path(folder, f"chaos-{world.seed}-{world.size}.log").write_text(
            "\n".join([*findings, "", *world.log, "", *map(str, logs)])
        )
    return findings


@contextlib.contextmanager
def _hurried(injector: Injector) -> Iterator[None]:
    sync, init, made = Clock.sync, RedisClient.__init__, Script.__init__

    def stepped(self: Clock, db_ms: int, rtt_s: float) -> None:
        sync(self, db_ms + injector.clock_offset_ms, rtt_s)

    def quick(self: RedisClient, url: str, *, connect_s: float = CONNECT_S) -> None:
        init(self, url, connect_s=CONNECT_S)

    def skewed(self: Script, redis_client: RedisClient, text: str) -> None:
        for name in ("t", "time"):
            read = f"local {name} = redis.call('TIME')\n"
            text = text.replace(
                read, f"{read}{name}[1] = {name}[1] + (tonumber(redis.call('GET', '{CLOCK_KEY}') or '0'))\n"
            )
        made(self, redis_client, text)

    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in HURRIED:
            patch.setattr(f"chatd.{module}.{name}", value)
        patch.setattr(Clock, "sync", stepped)
        patch.setattr(RedisClient, "__init__", quick)
        patch.setattr(Script, "__init__", skewed)
        yield
