"""A server process of ours that never outlives us: stopped in order by `stop`, killed by a watcher
should the bench itself be killed.

    bench ──child──► chatd or redis-server
      └──pipe──► watcher, a shell: reads until the pipe ends, then kills it
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

STOP_S_MAX: Final = 30.0
_WATCHER: Final = 'trap "" HUP INT TERM; read -r _; kill -9 "$1"'


class Child:
    """Runs from its making on. What it says goes to `log_file`."""

    def __init__(self, command: Sequence[str], log_file: Path, cwd: Path | None = None) -> None:
        self.log_file = log_file
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CHATD_")}
        with log_file.open("wb") as log:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=cwd,
                start_new_session=True,
            )
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHER, "bench-watcher", str(self._process.pid)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """None: it runs."""
        return self._process.poll()

    @property
    def said(self) -> str:
        return self.log_file.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self._process.kill()
        self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help. Idempotent."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                await asyncio.to_thread(self._process.wait, STOP_S_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._watcher.kill()
        self._watcher.communicate()
