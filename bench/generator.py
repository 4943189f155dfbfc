"""A process that makes load:

`python -m bench.generator`, started by `gang`, which says what to do over a pipe.

    stdin    one line of JSON each:  {"load":"messages", "endpoint":{...}, "tag":"a", "seed":1,
                                     "options":{...}}  first, then
                                     {"do":"prepare", "with":{...}}
    stdout   one line of JSON each:  {"ok": what it gave}  or  {"error": a sentence}
    stderr   progress, for people

A process of its own, so that measuring the server (reading /proc, waiting for PostgreSQL) delays no
message; several, so that one core is no bound. It ends when the pipe does: it never outlives the
bench.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import os
import random
import resource
import signal
import sys
from typing import Any, Final

import uvloop

from bench.crowd import Endpoint

NICE: Final = -10


class Load:
    """What a generator does: a module of `bench.loads` has one subclass, and its methods are the
    commands that `gang` may give.
    """

    DRAIN_S = 10.0  # the most it waits, after its last frame, for what has not come

    def __init__(self, endpoint: Endpoint, tag: str, seed: int, **options: Any) -> None:
        self.endpoint, self.tag = endpoint, tag
        self.drain_s = self.DRAIN_S if endpoint.drain_s is None else endpoint.drain_s
        self.rng = random.Random(f"{seed} {tag}")

    def names(self, n: int) -> list[str]:
        """Of n users that are nobody else's."""
        return [f"b{self.endpoint.run:08x}{self.tag}-{u}" for u in range(n)]


async def work() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    orders: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    listening = asyncio.ensure_future(_listen(reader, orders))
    first = await orders.get()
    load = importlib.import_module(f"bench.loads.{first['load']}").LOAD(
        Endpoint(**first["endpoint"]), first["tag"], first["seed"], **first["options"]
    )  # fmt: skip
    _say({"ok": os.getpid()})
    while True:
        order = await orders.get()
        try:
            given = getattr(load, order["do"])(**order["with"])
            _say({"ok": await given if asyncio.iscoroutine(given) else given})
        # The server's doing; all else is a fault here, and ends this process with its trace
        except (ConnectionError, OSError, TimeoutError) as e:
            _say({"error": f"{order['do']}: {str(e) or type(e).__name__}"})
        assert not listening.done()


async def _listen(reader: asyncio.StreamReader, orders: asyncio.Queue[dict[str, Any]]) -> None:
    while line := await reader.readline():
        orders.put_nowait(json.loads(line))
    os._exit(0)  # in the middle of whatever it was: nobody is there to be told


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the bench's to handle, and ends the pipe
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # each user is a descriptor here and one in the server
    with contextlib.suppress(PermissionError):  # where it may, it goes first: it has to be in time
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    gc.disable()  # a pause of the generator would look like one of the server
    uvloop.run(work())


if __name__ == "__main__":
    main()
