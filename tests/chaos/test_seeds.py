"""Chaos by seeds: see world.py. A handful here; `CHAOS_SEEDS=200` runs as many, `CHAOS_SEED=17` that one alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from chatd.clock import Clock
from chatd.engine import Engine, Script
from tests.chaos.injector import installed
from tests.chaos.servers import Place
from tests.chaos.world import World
from tests.fix_redis import MakeRedis

FIRST = 1
FEW = 5


def _seeds() -> list[int]:
    if one := os.environ.get("CHAOS_SEED"):
        return [int(seed) for seed in one.split(",")]
    return list(range(FIRST, FIRST + int(os.environ.get("CHAOS_SEEDS") or FEW)))


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same waits in the same relations, shorter."""
    for module, name, value in (
        ("registry", "LINGER_S", 0.4), ("store", "READ_TIMEOUT_S", 0.4), ("store", "READ_RETRY_MS", 60), ("feedreader", "DEADLINE_S", 0.6),
        ("gaps", "FILL_RETRY_S", 0.06), ("delivery", "FILL_RETRY_S", 0.06), ("cluster", "FEED_S", 0.25), ("cluster", "FEED_AWAY_S", 0.05),
        ("opening", "OPEN_RETRY_MS", 60), ("entering", "RETRY_MS", 60), ("quota", "TRIAL_S", 0.2), ("quota", "TRIAL_MAX_S", 0.5),
        ("bus", "PING_S", 0.25), ("bus", "PUBLISH_S", 0.3), ("bus", "BACKOFF_MAX_S", 0.2), ("presence_keys", "CALL_S", 0.3),
        ("writer", "BACKOFF_MAX_S", 0.2), ("feed", "BACKOFF_MAX_S", 0.2), ("postgres.watch", "LOOK_S", 0.2), ("postgres.watch", "DEADLINE_S", 0.6),
        ("engine", "RENEW_S", 0.05),
    ):  # fmt: skip
        target = f"chatd.{module}.{name}"
        monkeypatch.setattr(target, value)


async def one(seed: int, nodes: int, place: Place, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(seed, nodes, place)
    world.injector.script_offset_key = f"chaos{seed}:clock"
    sync, init, made = Clock.sync, Engine.__init__, Script.__init__

    def stepped(self: Clock, db_ms: int, rtt_s: float) -> None:
        sync(self, db_ms + world.injector.clock_offset_ms, rtt_s)

    def quick(self: Engine, url: str, *, connect_s: float = 0.5) -> None:
        init(self, url, connect_s=0.5)

    def skewed(self: Script, engine: Engine, text: str) -> None:
        for name in ("t", "time"):
            read = f"local {name} = redis.call('TIME')\n"
            text = text.replace(read, f"{read}{name}[1] = {name}[1] + (tonumber(redis.call('GET', 'chaos{seed}:clock') or '0'))\n")
        made(self, engine, text)

    with monkeypatch.context() as patch, installed(world.injector), structlog.testing.capture_logs() as logs:
        patch.setattr(Clock, "sync", stepped)
        patch.setattr(Engine, "__init__", quick)
        patch.setattr(Script, "__init__", skewed)
        tasks = asyncio.all_tasks()
        findings = await world.run()
    findings += [f"logged: {line}" for line in logs if line["event"].endswith((".bug", ".died"))]
    left = [task for task in asyncio.all_tasks() - tasks if not task.done()]
    findings += [f"a task is left: {task!r}" for task in left]
    trace = os.environ.get("CHAOS_TRACE")
    if trace and findings:
        Path(trace, f"chaos-{seed}-{nodes}.log").write_text("\n".join([*findings, "", *world.log, "", *map(str, logs)]))
    assert not findings, f"CHAOS_SEED={seed}, {nodes} nodes: {len(findings)} findings\n" + "\n".join(findings[:20]) + "\n\n" + "\n".join(world.log)
    return world


async def run_seeds(nodes: int, place: Place, make_db: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[str] = []
    for seed in _seeds():
        place.conninfo = make_db()
        for server in place.redis:
            server.command("FLUSHALL")
        began = asyncio.get_running_loop().time()
        try:
            world = await one(seed, nodes, place, monkeypatch)
        except AssertionError as e:
            failed.append(str(e))
            print(f"seed {seed}: FAILED\n{str(e)[:3000]}", flush=True)
            continue
        took = asyncio.get_running_loop().time() - began
        entries = sum(device.acked for device in world.devices)
        print(
            f"seed {seed}: {took:.1f} s, {entries} acks, {len(world.lives)} connections, {sum(world.injector.counts.values())} injected,"
            f" presence right after {world.presence_s:.1f} s", flush=True,
        )  # fmt: skip
    assert not failed, f"{len(failed)} of {len(_seeds())} seeds failed\n" + "\n\n".join(failed[:3])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place("", tmp_path, [])


async def test_one_node(place: Place, make_redis: MakeRedis, make_db: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    place.redis = [make_redis()]
    await run_seeds(1, place, make_db, monkeypatch)


@pytest.mark.cluster
async def test_three_nodes(place: Place, make_redis: MakeRedis, make_db: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    place.redis = [make_redis(), make_redis()]
    await run_seeds(3, place, make_db, monkeypatch)
