"""Runs a program again and again, each time with a signal at another step of its main thread.

    python tests/interrupted_script.py sync|bot|command SIGNAL RUNS SEED ARGS...    a line of JSON for each run

A step is an instruction (sync) or the begin of a function (the others), in whatever module. RUNS: at
how many steps, which are equally far from each other; the first one is drawn by SEED.
Each run is a fork, so it has an exit status of its own. One that hangs says where, and ends with
status 1. The first run gets no signal at a step; like one that ends before its step, it ends by
itself, or by SIGINT once it has written a line.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import random
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

HANGS_S: Final = 30.0
NEVER: Final = 1 << 62


class Interrupt:
    """A trace function: sends `number` to this process before step `at`. `steps` is shared."""

    def __init__(self, at: int, number: int, steps: mmap.mmap) -> None:
        self._at, self._number, self._steps = at, number, steps

    def instructions(self, frame: FrameType, event: str, _: object) -> Any:
        """For `sys.settrace`: each instruction is a step."""
        frame.f_trace_opcodes = True
        if event == "opcode":
            self._step(frame)
        return self.instructions

    def functions(self, frame: FrameType, _event: str, _: object) -> None:
        """For `sys.settrace`: each begin of a function is a step."""
        self._step(frame)

    def main_on(self, frame: FrameType, _event: str, _: object) -> None:
        """For `sys.settrace`: the same, from the command's own code on."""
        if frame.f_code.co_name == "main" and frame.f_code.co_filename.endswith("chatd/__main__.py"):
            sys.settrace(self.functions)
            self._step(frame)

    def _step(self, frame: FrameType) -> None:
        step = int.from_bytes(self._steps[:8], "big")
        self._steps[:8] = (step + 1).to_bytes(8, "big")
        if step >= self._at and not _is_swallowed(frame):
            sys.settrace(None)
            signal.raise_signal(self._number)  # what its handler raises is raised here


def _is_swallowed(at: FrameType) -> bool:
    """Whether Python itself drops what is raised there, also a KeyboardInterrupt."""
    frame: FrameType | None = at
    while frame is not None:
        if frame.f_code.co_name in ("__del__", "_remove"):  # the second: of a weak reference
            return True
        frame = frame.f_back
    return False


def sync(interrupt: Interrupt, url: str, path: str) -> None:
    """A script: sends, reads, closes. After a Ctrl-C it can still send."""
    from chatd.client import FileStore
    from chatd.client.sync import Client

    client = Client(url, token="me", device="script", store=FileStore(path))
    sys.settrace(interrupt.instructions)
    with client:
        try:
            for _entry in client.entries(timeout_s=0.0):
                pass
            client.send("bob", "hi")
        except KeyboardInterrupt:
            client.send("bob", "bye")
            raise
    sys.settrace(None)


def bot(interrupt: Interrupt, url: str, path: str) -> None:
    """A program of handlers, which ends by SIGTERM once it has answered."""
    from chatd.client import Client, Entry, FileStore

    client = Client(url, token="me", device="bot", store=FileStore(path))

    @client.on_message
    async def answer(entry: Entry) -> None:
        await entry.reply("re")

    @client.on_entry
    async def end(entry: Entry) -> None:
        if entry.own:
            signal.raise_signal(signal.SIGTERM)

    sys.settrace(interrupt.functions)
    client.run()
    sys.settrace(None)


def command(interrupt: Interrupt, *args: str) -> None:
    """`chatd ARGS`."""
    sys.argv = ["chatd", *args]
    sys.settrace(interrupt.main_on)
    runpy.run_module("chatd", run_name="__main__", alter_sys=True)


class Runs:
    """Runs of one program."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.steps = mmap.mmap(-1, 8)

    def run(self, at: int) -> dict[str, Any]:
        """One in a fork: its exit status as `subprocess` gives it, and what it wrote to stderr."""
        self.steps[:8] = bytes(8)
        theirs, ours = os.pipe()
        reads, writes = os.pipe()
        with tempfile.TemporaryFile() as errors:
            pid = os.fork()
            if pid == 0:
                for fd, mine in ((theirs, 0), (writes, 1), (errors.fileno(), 2)):
                    os.dup2(fd, mine)
                for fd in (theirs, ours, reads, writes):
                    os.close(fd)
                faulthandler.dump_traceback_later(HANGS_S, exit=True)
                raise Fork(Interrupt(at, self._number, self.steps))
            os.close(theirs)
            os.close(writes)
            os.write(ours, b"hello\n")
            if os.read(reads, 1):  # it works, and would go on
                os.kill(pid, signal.SIGINT)
            _, status = os.waitpid(pid, 0)
            os.close(ours)
            os.close(reads)
            errors.seek(0)
            was_late = int.from_bytes(self.steps[:8], "big") <= at
            found = {"at": None if was_late else at, "status": os.waitstatus_to_exitcode(status)}
            return found | {"errors": errors.read().decode()}


class Fork(BaseException):
    """In the child: leave the loop of runs, so that the program's end is that of the interpreter."""


def drive(number: int, count: int, seed: str) -> None:
    """All runs. Raises Fork in each."""
    runs = Runs(number)
    print(json.dumps(runs.run(NEVER)), flush=True)
    total = int.from_bytes(runs.steps[:8], "big")
    every = max(1, total // count)
    for at in range(random.Random(seed).randrange(every), total, every):
        print(json.dumps(runs.run(at)), flush=True)


PROGRAMS: Final[dict[str, Callable[..., None]]] = {"sync": sync, "bot": bot, "command": command}

if __name__ == "__main__":
    name, number, count, seed, *args = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    if name != "command":
        import chatd.client.sync  # noqa: F401 (once for all runs)
    mine: Interrupt | None = None
    try:
        drive(int(number), int(count), seed)
    except Fork as fork:
        mine = fork.args[0]
    if mine is not None:
        PROGRAMS[name](mine, *args)
