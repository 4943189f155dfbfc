"""Where the tests' files lie: in memory, where that has room. Compiled modules lie beside their
sources.

What PostgreSQL syncs costs nothing there, and its settings stay those of production.

A DROP DATABASE alone writes and syncs every file of the databases made before it: on two cores and
one disk that was 0.2 to 1.3 s a test. No test asks what a machine that loses its power would keep;
those that kill processes find all that was written, on a disk or not.

The suite starts some hundred interpreters, and three workers collect all of the tests: where
PYTHONDONTWRITEBYTECODE is set, each would compile all that it reads (0.3 s of CPU a start, 12 s a
worker).

Importing this sets TMPDIR for the tests and their processes, and unsets that variable. The path is
short, as those of Unix sockets must be.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Final

MEMORY: Final = Path("/dev/shm")
FREE_BYTES_MIN: Final = 8 << 30  # three workers' servers have 3 GiB at most


def _has_room() -> bool:
    try:
        disk = os.statvfs(MEMORY)
        memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return min(
            disk.f_bavail * disk.f_frsize, int(memory["MemAvailable"].split()[0]) << 10
        ) >= FREE_BYTES_MIN and os.access(MEMORY, os.W_OK)
    except (OSError, KeyError):
        return False


if "TMPDIR" not in os.environ:
    os.environ["TMPDIR"] = str(MEMORY) if _has_room() else "/tmp"
    tempfile.tempdir = None
ROOT: Final = tempfile.gettempdir()

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
