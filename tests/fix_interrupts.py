"""Programs that get a signal at any step: see tests/interrupted_script.py."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import sys
from dataclasses import dataclass

from tests import interrupted_script


@dataclass(frozen=True)
class Run:
    """How one ended. `at`: the step that got the signal; None: it ended before that."""

    at: int | None
    status: int
    errors: str


async def interrupted(program: str, number: signal.Signals, count: int, *args: str) -> list[Run]:
    """The whole run, and then those with a signal at one of `count` steps, or at each (0).

    What repeats them is printed.
    """
    seed = secrets.token_hex(4)
    command = [sys.executable, interrupted_script.__file__, program, str(int(number)), str(count), seed, *args]
    print(" ".join(command))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return [Run(**json.loads(line)) for line in output.splitlines()]
