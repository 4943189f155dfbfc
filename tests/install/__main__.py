"""Does the steps of docs/operations.md's Install on a machine of its own, then looks at what the
page promises. See the package.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from tests.install import checks
from tests.install.machine import CANNOT, INSIDE, Cannot, Failed, Machine, enter, output, say
from tests.install.page import PAGE, ROOT, steps
from tests.install.states import States
from tests.install.terminal import CLONE, Terminal


def copy_checkout(to: Path) -> None:
    """A clone as the page has it: what git knows, with the changes at hand."""
    names = output(["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"]).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def install(machine: Machine) -> None:
    """Raises Failed, or Cannot before anything was tried."""
    page = PAGE.read_text()
    machine.lay_over()
    copy_checkout(machine.root / CLONE.lstrip("/"))
    shutil.copytree(Path(__file__).with_name("inside"), machine.root / checks.INSIDE.lstrip("/"))
    machine.boot()
    say("a machine of its own has booted: " + machine.run("systemctl", "--version").splitlines()[0])
    checks.lay_certificate(machine, page)
    terminal = Terminal(machine)
    for step in steps(page):
        terminal.do(step)
    say(
        "from Debian: "
        + ", ".join(
            machine.run(
                "dpkg-query", "-W", "-f", "${Package} ${Version}\\n", "postgresql", "nginx", "redis-server"
            ).splitlines()
        )
    )
    checks.chat(machine)
    checks.commands(machine)
    checks.process_metrics(machine)
    checks.signals(machine)
    States(machine).try_all()
    checks.priorities(machine)


def inside(place: Path, group: Path) -> int:
    began = time.monotonic()
    machine = Machine(place, group)
    try:
        install(machine)
    except Failed as e:
        say(f"failed: {e}")
        return 1
    finally:
        machine.stop()
    say(f"done in {time.monotonic() - began:.0f} s")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.install", description="The install of docs/operations.md, word for word."
    )
    parser.add_argument("--plan", action="store_true", help="only show the commands")
    if parser.parse_args().plan:
        print("\n".join(step.command for step in steps(PAGE.read_text())))
        return 0
    place, _, group = os.environ.pop(INSIDE, "").partition(":")
    try:
        return inside(Path(place), Path(group)) if place else enter()
    except Cannot as e:
        say(f"cannot: {e}")
        return CANNOT


if __name__ == "__main__":
    sys.exit(main())
