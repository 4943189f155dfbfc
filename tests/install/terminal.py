"""Types the page's commands on a terminal of the machine, as somebody would who reads the page."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import time
from typing import Final

from tests.install.machine import Failed, Machine, environment, say
from tests.install.page import Step

PASSWORD: Final = "correct-horse"
CLONE: Final = "/srv/chatd"
COMMAND_S_MAX: Final = 180.0  # without a word
SHOWN_LINES: Final = 12
REGISTRY: Final = re.compile(r"apt-get|\S*/pip ")  # what fetches: in the network at hand


class Terminal:
    """`do` one step after the other. Raises Failed where a command's exit status is not 0."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def do(self, step: Step) -> None:
        say(f"$ {step.command}")
        if step.text:
            self._edit(step)
            return
        began = time.monotonic()
        status, shown = self._type(step.command)
        for line in shown[-SHOWN_LINES:] if not step.command.startswith("apt-get") else []:
            print(f"  {line}")
        if (took_s := time.monotonic() - began) > 5:
            say(f"  took {took_s:.0f} s")
        if status != 0:
            raise Failed(f"({status}) {step.command}\n" + "\n".join(shown[-40:]))

    def _edit(self, step: Step) -> None:
        """What an editor would leave: the block at the end of the file."""
        path = self._machine.root / step.command.split()[1].lstrip("/")
        with path.open("a") as file:
            file.write(step.text.replace("PASSWORD", PASSWORD))

    def _type(self, command: str) -> tuple[int, list[str]]:
        """Exit status and lines shown. What asks for a password gets it."""
        pid, terminal = pty.fork()
        if pid == 0:
            words = self._machine.words(has_network=REGISTRY.match(command) is not None)
            os.execvpe(words[0], [*words, "bash", "-euc", f"cd {CLONE}; {command}"], {**environment(), "TERM": "dumb"})
        said, answered = b"", 0
        while True:
            ready, _, _ = select.select([terminal], [], [], COMMAND_S_MAX)
            if not ready:
                os.kill(pid, signal.SIGKILL)
            try:
                data = os.read(terminal, 4096) if ready else b""
            except OSError:  # how a terminal tells its end
                data = b""
            if not data:
                break
            said += data
            if re.search(rb"(assword.*|again): *$", said[answered:]):
                answered = len(said)
                time.sleep(0.2)  # who asks for a password first drops what was typed before
                os.write(terminal, f"{PASSWORD}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(terminal)
        return status, said.decode(errors="replace").replace("\r", "").strip().splitlines()
