"""What `/readyz` says, and how soon, while PostgreSQL or Redis is brought into each state that the
page names. Prints a table.

The states are real ones: a service that is stopped, processes that are stopped, a setting, a disk
of 300 MB that is full.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Final

from tests.install import checks
from tests.install.machine import Machine, say

CHAT: Final = checks.INSIDE + "/chat.py"
POSTGRES: Final = "/var/lib/postgresql"
DISK: Final = "300M"
READY_MS_MAX: Final = 500.0
READ_ONLY: Final = "ALTER SYSTEM {} default_transaction_read_only"
OK: Final = "200 - -"


class States:
    """`try_all` on a machine on which chatd serves, and is stopped in the end."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._probe = machine.popen(checks.PYTHON, "-I", checks.INSIDE + "/probe.py", *map(str, checks.ADMIN_PORTS))
        self._postgres = next(iter((machine.root / "etc/postgresql").iterdir())).name

    def try_all(self) -> None:
        unit = f"postgresql@{self._postgres}-main"
        self._use_small_disk(unit)
        print(f"  {'state':<12} {'status':<7} {'right':>9} {'slowest':>8}  says", flush=True)
        self._row("all is well", OK)
        self._systemctl("stop", "redis-server")
        self._row("Redis away", "200 redis -", at_once=True)
        self._systemctl("start", "redis-server")
        self._row("back", OK)
        self._systemctl("kill", "--signal=STOP", unit)
        self._row("hanging", "503 database timeout:", at_once=True)
        self._systemctl("kill", "--signal=CONT", unit)
        self._row("back", OK)
        self._sql(READ_ONLY.format("SET") + " = on")
        self._row("read-only", "503 database read-only:", at_once=True)
        self._sql(READ_ONLY.format("RESET"))
        self._row("back", OK)
        self._fill_and_free()
        self._systemctl("stop", unit)
        self._row("stopped", "503 database -", at_once=True)  # a node may say for a second how its connections ended
        self._row("refusing", "503 database away:", soon=True)
        self._systemctl("start", unit)
        self._row("back", OK)
        self._drain()

    def _row(self, state: str, wanted: str, *, at_once: bool = False, soon: bool = False) -> None:
        """`at_once`: each node's first answer is to be right; `soon`: one within the time that an
        answer has.

        Raises Failed where it is not, where no answer gets right, or where answers take longer than
        the page says, twice.
        """
        seen = self._ask(wanted)
        checks.expect(seen["first"] or not at_once, f"/readyz is right at once ({state})", seen)
        checks.expect(
            seen["right_ms"] <= READY_MS_MAX or not soon,
            f"/readyz is right within {READY_MS_MAX:.0f} ms ({state})",
            seen,
        )
        # By this machine, perhaps, which does other things, too: the state is the same
        if seen["longest_ms"] > READY_MS_MAX:
            say(f"  {state}: an answer took {seen['longest_ms']:.0f} ms; asked again")
            seen = self._ask(wanted)
        right = f"{seen['right_ms']:.0f} ms" if not seen["first"] else "at once"
        parts = seen["said"].get("reasons", seen["said"].get("degraded", {}))
        says = "; ".join(f"{part}: {sentence}" for part, sentence in parts.items()) or "ready"
        print(
            f"  {state:<12} {wanted.split()[0]:<7} {right:>9} {seen['longest_ms']:>5.0f} ms  {says[:100]}", flush=True
        )
        checks.expect(
            seen["longest_ms"] <= READY_MS_MAX, f"/readyz answers within {READY_MS_MAX:.0f} ms ({state})", seen
        )

    def _ask(self, wanted: str) -> dict[str, Any]:
        assert self._probe.stdin is not None
        assert self._probe.stdout is not None
        print(wanted, file=self._probe.stdin)
        line = self._probe.stdout.readline()
        seen: dict[str, Any] = json.loads(line) if line else {"right_ms": None, "said": "the probe has ended"}
        checks.expect(seen["right_ms"] is not None, f"/readyz says {wanted}", seen)
        return seen

    def _systemctl(self, *words: str) -> None:
        self._machine.run("systemctl", *words)

    def _sql(self, statement: str) -> None:
        self._machine.run("runuser", "-u", "postgres", "--", "psql", "-qc", statement, "-c", "SELECT pg_reload_conf()")

    def _use_small_disk(self, unit: str) -> None:
        """PostgreSQL's data move to a file system of their own, which can be filled."""
        self._systemctl("stop", unit)
        for command in (
            f"mount -t tmpfs -o size={DISK},mode=755 tmpfs /mnt",
            f"cp -a {POSTGRES}/. /mnt",
            f"mount --bind /mnt {POSTGRES}",
        ):
            self._machine.run(*command.split())
        self._systemctl("start", unit)

    def _fill_and_free(self) -> None:
        """Not a byte is free, and nobody writes by these nodes."""
        self._machine.run(
            "sh", "-c", f"dd if=/dev/zero of={POSTGRES}/ballast bs=64k 2>/dev/null; test -s {POSTGRES}/ballast"
        )
        self._row("full", "503 database disk-full:", soon=True)
        self._machine.run("rm", f"{POSTGRES}/ballast")
        self._row("back", OK)

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """People are connected to both nodes, and write."""
        people = self._machine.popen(
            checks.PYTHON, "-I", CHAT, checks.URL, checks.CA, *checks.tokens(self._machine), "stay"
        )
        assert people.stdout is not None
        try:
            checks.expect("chatted" in people.stdout.readline(), "people can chat")
            yield
        finally:
            self._machine.run("pkill", "-KILL", "-f", CHAT)
            people.kill()  # nsenter: it stops when its child is stopped
            people.wait()

    def _drain(self) -> None:
        """SIGTERM while people are connected who hang: those who do not would leave at once."""
        with self._talking():
            self._machine.run("pkill", "-STOP", "-f", CHAT)
            self._systemctl("stop", "--no-block", "chatd")
            checks.until(
                lambda: checks.unit(self._machine, "StatusText") == "draining", "systemd hears STATUS=draining"
            )
            self._row("draining", "503 draining -", at_once=True)
        checks.until(lambda: checks.unit(self._machine, "ActiveState") == "inactive", "it has stopped", tries=1000)
        seen = [checks.unit(self._machine, name) for name in ("Result", "ExecMainStatus", "StatusText")]
        checks.expect(
            seen == ["success", "0", "draining"], "STOPPING=1 was heard, and it drained whole: exit status 0", seen
        )
        say(f"SIGTERM: systemd heard STATUS={seen[2]}; exit status {seen[1]}")
