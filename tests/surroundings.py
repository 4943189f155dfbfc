"""Commands of chatd in the surroundings that nobody thinks of: a closed descriptor, a full disk, no
home, hardly any descriptors.

    python tests/surroundings.py < orders.json > results.json

An order is (surroundings, arguments); a result (status, stdout, stderr). One interpreter reads all
of chatd and forks for each order, which takes a tenth of what an interpreter of its own takes. What
a child may no longer read after it has given up its rights is read before.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Final

from tests.forkserver import read_modules

NOBODY: Final = 54_321  # no entry in passwd
CHILD_S_MAX: Final = 30


def _nobody_reads() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)


def _full_disk(fd: int) -> Callable[[], None]:
    def fill() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), fd)

    return fill


def _no_home() -> None:
    os.environ.pop("HOME", None)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _closed(fd: int, name: str) -> Callable[[], None]:
    def close() -> None:
        os.close(fd)
        setattr(sys, name, None)

    return close


def _ascii() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]


SURROUNDINGS: Final[dict[str, Callable[[], None]]] = {
    "plain": lambda: None,
    "nobody reads": _nobody_reads,
    "full disk": _full_disk(1),
    "no home": _no_home,
    "20 files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)),
    "ascii": _ascii,
    "no stdin": _closed(0, "stdin"),
    "no stdout": _closed(1, "stdout"),
    "no stderr": _closed(2, "stderr"),
    "full stderr": _full_disk(2),
}


def _be_chatd(surroundings: str, argv: list[str], out: int, err: int) -> None:
    status = 70
    try:
        signal.alarm(CHILD_S_MAX)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.closerange(3, 1 << 10)
        sys.argv = ["chatd", *argv]
        from chatd.cli import main

        SURROUNDINGS[surroundings]()
        status = main()
        # As the interpreter does at its end, which then says so and gives 120.
        with contextlib.suppress(AttributeError):
            sys.stdout.flush()
    except BaseException:
        status = 70
        sys.excepthook(*sys.exc_info())
    os._exit(status)


def run(surroundings: str, argv: list[str]) -> tuple[int, str, str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if (pid := os.fork()) == 0:
            _be_chatd(surroundings, argv, out.fileno(), err.fileno())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        return status, out.read().decode(errors="replace"), err.read().decode(errors="replace")


if __name__ == "__main__":
    read_modules()
    for module in ("chatd.client.tail", "email.policy"):
        importlib.import_module(module)

    gc.collect()
    gc.freeze()
    gc.disable()
    for name in [name for name in os.environ if name.startswith("CHATD_")]:
        del os.environ[name]
    json.dump([run(*order) for order in json.load(sys.stdin)], sys.stdout)
