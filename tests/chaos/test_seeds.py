"""Chaos by seeds: see world.py. A handful here.

`CHAOS_SEEDS=200` runs as many, and watches presence for longer; `CHAOS_SEED=17` or
`CHAOS_SEED=17,17,18` those.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.running import run
from tests.chaos.servers import Place
from tests.chaos.world import World
from tests.fix_redis import MakeRedis

FIRST: Final = 1
FEW: Final = 3  # CHAOS_SEEDS gives more
SHOWN: Final = 20


def _seeds() -> list[int]:
    if some := os.environ.get("CHAOS_SEED"):
        return [int(seed) for seed in some.split(",")]
    return list(range(FIRST, FIRST + int(os.environ.get("CHAOS_SEEDS") or FEW)))


async def run_seeds(nodes: int, place: Place, make_db: Callable[[], str]) -> None:
    failed: list[str] = []
    for seed in _seeds():
        place.conninfo = make_db()
        for server in place.redis:
            server.command("FLUSHALL")
        began = asyncio.get_running_loop().time()
        world = World(seed, nodes, place, is_patient=len(_seeds()) > FEW)
        findings = await run(world)
        took = asyncio.get_running_loop().time() - began
        if findings:
            failed.append(
                "\n".join(
                    [f"CHAOS_SEED={seed}, {nodes} nodes: {len(findings)} findings", *findings[:SHOWN], "", *world.log]
                )
            )
            print(f"seed {seed}: FAILED\n{failed[-1]}", flush=True)
            continue
        print(
            f"seed {seed}: {took:.1f} s, {sum(device.acked for device in world.devices)} acks, {len(world.lives)}"
            " connections,"
            f" {sum(world.injector.counts.values())} injected, presence right after {world.convergence.right_s:.1f} s",
            flush=True,
        )
    assert not failed, f"{len(failed)} of {len(_seeds())} seeds failed\n" + "\n\n".join(failed[:3])


async def test_one_node(make_redis: MakeRedis, make_db: Callable[[], str], tmp_path: Path) -> None:
    await run_seeds(1, Place("", tmp_path, [make_redis()]), make_db)


@pytest.mark.cluster
async def test_three_nodes(make_redis: MakeRedis, make_db: Callable[[], str], tmp_path: Path) -> None:
    await run_seeds(3, Place("", tmp_path, [make_redis(), make_redis()]), make_db)
