"""The generators of a run: starts them, tells all of them what to do, adds up what they give.

    async with Gang(target) as gang:
        senders = await gang.add("messages", connections=200)
        await senders.do("connect")

A generator that ends, or says that the server failed it, ends the run with a TargetError that has
its words.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench.target import Target, TargetError

LINE_BYTES_MAX: Final = 1 << 26
STOP_S_MAX: Final = 5.0
AHEAD_S: Final = 0.2  # from the order to the first thing that is due: all generators have heard it by then


class Generator:
    """One process. `do` gives what its load's method gives."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process, self.name = process, name

    @property
    def pid(self) -> int:
        return self._process.pid

    async def do(self, command: str, **arguments: Any) -> Any:
        await self._write({"do": command, "with": arguments})
        return await self._read()

    async def _write(self, line: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            raise TargetError(f"generator {self.name} has ended") from None

    async def _read(self) -> Any:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise TargetError(f"generator {self.name} has ended with status {await self._process.wait()}; see above")
        answer = json.loads(line)
        if "error" in answer:
            raise TargetError(f"generator {self.name}: {answer['error']}")
        return answer["ok"]

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_S_MAX)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


class Gang:
    """`async with` ends all of them."""

    def __init__(self, target: Target, seed: int) -> None:
        self._target, self._seed = target, seed
        self.generators: list[Generator] = []

    async def __aenter__(self) -> Gang:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(one.stop() for one in self.generators))

    async def add(self, load: str, tag: str = "", **options: Any) -> Generator:
        """Start a generator with that load (a module of `bench.loads`); users are named by `tag`,
        which no two of a server may share.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.generator", cwd=Path(__file__).parents[1], limit=LINE_BYTES_MAX,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        tag = f"{tag}{len(self.generators)}"
        one = Generator(process, f"{load} {tag}")
        self.generators.append(one)
        first = {
            "load": load,
            "endpoint": asdict(self._target.endpoint),
            "tag": tag,
            "seed": self._seed,
            "options": options,
        }
        await one._write(first)
        await one._read()
        return one


async def everybody(generators: list[Generator], command: str, **arguments: Any) -> list[Any]:
    """The same order to all, at once."""
    return list(await asyncio.gather(*(one.do(command, **arguments) for one in generators)))


def soon() -> float:
    """When to begin: a time that all processes of this machine read alike (CLOCK_MONOTONIC)."""
    return time.perf_counter() + AHEAD_S
