"""`python -m bench` as a command, for the tests of it: tiny runs, of no worth as measurements.

bench       `bench("send", "--rate=100")`: runs a scenario to its end on a copy of a migrated
            cluster; gives its exit status, its figures and what it printed. Exit status, JSON
            and page are held to say the same
start       a bench that goes on until it is told to stop, with a cluster that it makes itself
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

ROOT = Path(__file__).parents[1]
RUN_S_MAX = 90.0
Bench: TypeAlias = Callable[..., tuple[int, dict[str, Any], str]]
# Waits that make the figures good, which is not what is tested here.
QUICK = {
    "idle": ("--settle-s=0.1", "--idle-s=0.5"),
    "attack": ("--settle-s=0.1",), "resync": ("--flush-s=0.1",),
    **dict.fromkeys(("send", "fanout", "soak", "saturate"), ("--warm-wal-mib=1",)),
}  # fmt: skip


def is_nothing_left(tmp_path: Path) -> bool:
    """No process with this test's folder among its arguments: a bench's servers have it, as it is
    their temporary folder.
    """
    commands = (command_of(int(folder.name)) for folder in Path("/proc").glob("[0-9]*"))
    return not any(bytes(tmp_path) in command for command in commands)


def command_of(pid: int) -> bytes:
    """Empty where there is none, or only its status."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def start(tmp_path: Path, *flags: str) -> subprocess.Popen[str]:
    """A bench that goes on until it is told to stop; gives it once it measures."""
    command, environment = [sys.executable, "-m", "bench", *flags], {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    assert any("measured" in line for line in process.stderr)
    return process


@pytest.fixture
def bench(tmp_path: Path, own_template: Path) -> Bench:
    def run(*flags: str) -> tuple[int, dict[str, Any], str]:
        out = tmp_path / "out.json"
        own = (*QUICK.get(flags[0], ()), f"--data-from={own_template}")
        command = [sys.executable, "-m", "bench", flags[0], *own, *flags[1:], "--json", str(out)]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_S_MAX, check=False, env=environment
        )
        assert out.exists(), done.stdout + done.stderr
        figures = json.loads(out.read_text())
        assert done.returncode == (1 if figures["void"] or figures["over"] else 0), done.stdout
        page = out.with_suffix(".html").read_text()
        assert ("Void" if figures["void"] else "Over budget" if figures["over"] else "Within budget") in page
        return done.returncode, figures, done.stdout

    return run
