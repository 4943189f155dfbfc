"""Programs that get a signal at any step: see tests/interrupted_script.py."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import sys
from dataclasses import dataclass
from typing import Final

from tests import interrupted_script

TOLERATED: Final = 0.1  # where the hand-over to the loop was not safe, half of them failed


@dataclass(frozen=True)
class Run:
    """How one ended. `at`: the step that got the signal; None: it ended before that."""

    at: int | None
    status: int
    errors: str

    @property
    def was_dropped(self) -> bool:
        """Whether Python itself dropped what the handler raised, as in the end of a generator."""
        return "Exception ignored in" in self.errors


async def interrupted(program: str, number: signal.Signals, count: int, *args: str) -> list[Run]:
    """The whole run, and then those with a signal at one of `count` steps.

    What repeats them is printed. Few of the steps are in code of Python's that is not safe against
    what a handler raises (a generator that ends, the start of a thread): `TOLERATED` of the runs.
    """
    seed = secrets.token_hex(4)
    command = [sys.executable, interrupted_script.__file__, program, str(int(number)), str(count), seed, *args]
    print(" ".join(command))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return [run for line in output.splitlines() if not (run := Run(**json.loads(line))).was_dropped]
