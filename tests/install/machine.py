"""A machine of its own, over the one at hand: its systemd runs as the first process, and nothing
that it does is left.

    enter()    this program again, in namespaces of its own: whatever ends it ends the machine
    Machine    its root is an overlay over `/`, written to memory; it has its own /tmp, /run, /dev, process ids and
               network (loopback alone)

Only what goes to a registry (apt, pip) is run in the network at hand. Rejected: systemd-nspawn,
which does the same, is a package more to fetch, and wants a systemd or its layout of cgroups around
it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.install.page import ROOT

INSIDE: Final = "CHATD_INSTALL_INSIDE"
CANNOT: Final = 77  # the exit status that says: not on this machine
BOOT_S_MAX: Final = 60.0
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# They would ask a terminal for a login, hold apt's lock, or change what the kernel has once for
# all: its modules and its clock.
MASKED: Final = (
    "console-getty.service",
    "getty.target",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "systemd-modules-load.service",
    "systemd-timesyncd.service",
)


class Cannot(Exception):
    """Such a machine cannot be made here; says why."""


class Failed(Exception):
    """The install does not do what the page says; says where."""


def say(text: str) -> None:
    print(f"install: {text}", flush=True)


def enter() -> int:
    """Run this program again where mounts and processes end with it.

    Gives its exit status. Raises Cannot.
    """
    if os.geteuid() != 0:
        raise Cannot("it needs root, as the page's commands do")
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        raise Cannot("no namespaces can be made here, and the machine is to stay as it is")
    # So that what is made here is removed then, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="chatd-install-") as place, control_group() as group:
        env = {**os.environ, INSIDE: f"{place}:{group}"}
        return subprocess.run(
            [*command, sys.executable, "-m", "tests.install"], env=env, cwd=ROOT, check=False
        ).returncode


@contextlib.contextmanager
def control_group() -> Iterator[Path]:
    """A control group (version 2) for the machine's processes, below our own; gives its folder.

    Raises Cannot.
    """
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    where = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    ours = next(
        (line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), None
    )
    if where is None or ours is None:
        raise Cannot("no control groups of version 2 are mounted here, and systemd needs them")
    group = Path(where) / ours.strip("/") / f"chatd-install-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as e:
        raise Cannot(f"no control group can be made here, and systemd needs one: {e}") from e
    try:
        yield group
    finally:
        remove_group(group)


def remove_group(group: Path) -> None:
    """Those below it first. Processes that were just killed may still be in it."""
    deadline = time.monotonic() + 10
    while group.exists():
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        if time.monotonic() > deadline:
            say(f"left behind: {group}")
            return
        time.sleep(0.02)


class Machine:
    """`lay_over` and `boot` it, `run` commands on it, `stop` it.

    `root`: its root, as seen from here, without what it mounts itself.
    """

    def __init__(self, place: Path, group: Path) -> None:
        self.place, self.group, self.root = place, group, place / "machine"
        self._shell: subprocess.Popen[bytes] | None = None
        self._pid = 0  # of its systemd, as seen from here

    def boot(self) -> None:
        """After `lay_over`.

        Returns once its systemd has started what it is to start. Raises Cannot.
        """
        with (self.place / "boot.log").open("wb") as log:
            namespaces = "--mount --pid --fork --kill-child --net --uts --ipc --cgroup --propagation private"
            script = Path(__file__).with_name("boot.sh")
            command = f"echo 0 > {self.group}/cgroup.procs && exec unshare {namespaces} sh {script} {self.root}"
            self._shell = subprocess.Popen(["sh", "-c", command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + BOOT_S_MAX
        while not self._is_up():
            if self._shell.poll() is not None or time.monotonic() > deadline:
                raise Cannot(f"no systemd starts here: {(self.place / 'boot.log').read_text()[-500:]}")
            time.sleep(0.1)

    def lay_over(self) -> None:
        """Make its root: from now on files can be put there.

        What is written there goes to memory. Raises Cannot.
        """
        try:
            sh(f"mount -t tmpfs tmpfs {self.place} && mkdir {self.place}/upper {self.place}/work {self.root}")
            sh(
                f"mount -t overlay overlay -o lowerdir=/,upperdir={self.place}/upper,workdir={self.place}/work"
                f" {self.root}"
            )
        except Failed as e:
            raise Cannot(f"no layer can be mounted over the machine's root: {e}") from e
        if not (self.root / "lib/systemd/systemd").exists():
            raise Cannot("no systemd is installed here")
        # How images keep packages from starting their services
        (self.root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
        (self.root / "etc/machine-id").write_text("")
        for unit in MASKED:
            (self.root / "etc/systemd/system" / unit).unlink(missing_ok=True)
            (self.root / "etc/systemd/system" / unit).symlink_to("/dev/null")

    def _is_up(self) -> bool:
        assert self._shell is not None
        try:
            self._pid = int(Path(f"/proc/{self._shell.pid}/task/{self._shell.pid}/children").read_text().split()[0])
            if Path(f"/proc/{self._pid}/exe").readlink().name != "systemd":
                return False
        except (OSError, IndexError):
            return False
        state = subprocess.run(
            [*self.words(), "systemctl", "is-system-running", "--wait"], capture_output=True, text=True, check=False
        )
        return state.stdout.strip() in ("running", "degraded")

    def words(self, *, has_network: bool = False) -> list[str]:
        """What to put before a command for it to run on this machine; `has_network`: in the network
        at hand.
        """
        spaces = ["--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root", "--wd"]
        return ["nsenter", f"--target={self._pid}", *spaces, *([] if has_network else ["--net"])]

    def run(self, *command: str) -> str:
        """Its output. Raises Failed where its exit status is not 0."""
        return output([*self.words(), *command])

    def popen(self, *command: str) -> subprocess.Popen[str]:
        """Starts it; its stdin and stdout are ours.

        Killing what this gives would kill nsenter alone: end it by its stdin, or by `pkill` there.
        """
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*self.words(), *command], stdin=pipe, stdout=pipe, text=True, bufsize=1, env=environment()
        )

    def stop(self) -> None:
        if self._shell is not None:
            self._shell.send_signal(signal.SIGKILL)  # `--kill-child`: its systemd with it, and with that all others
            self._shell.wait()


def environment() -> dict[str, str]:
    """As somebody who has just logged in has it, and what pip and apt need here to reach their
    registries.
    """
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("CHATD_", "VIRTUAL_ENV", "PYTHON", "PYENV"))}
    return {**ours, "PATH": PATH, "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}


def output(command: list[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(), stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise Failed(f"({done.returncode}) {' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def sh(line: str) -> str:
    return output(["sh", "-euc", line])
