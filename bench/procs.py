"""CPU and memory of process trees, and facts about the machine, from /proc (Linux)."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PPID, _UTIME, _CSTIME = 1, 11, 14  # places behind the command's closing bracket


class Cpu(NamedTuple):
    """Seconds of CPU so far.

    `server` is the sum of `nodes`; `bench` the generators and what watches them.
    """

    server: float
    postgres: float
    redis: float
    bench: float
    machine: float
    nodes: tuple[float, ...] = ()

    def since(self, before: Cpu) -> Cpu:
        nodes = tuple(now - then for now, then in zip(self.nodes, before.nodes, strict=True))
        return Cpu(
            self.server - before.server,
            self.postgres - before.postgres,
            self.redis - before.redis,
            self.bench - before.bench,
            self.machine - before.machine,
            nodes,
        )

    @property
    def other(self) -> float:
        """Of everything else on the machine: noise."""
        return max(0.0, self.machine - self.server - self.postgres - self.redis - self.bench)


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has ended
        return None
    return text[text.rindex(")") + 2 :].split()


def tree(root: int, but: Iterable[int] = ()) -> set[int]:
    """All live processes at or under `root`, without the trees under `but`."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208  a measurement is to cost little, and Path is four times as slow here
        if name.isdigit() and (stat := _stat(int(name))) is not None:
            children.setdefault(int(stat[_PPID]), []).append(int(name))
    found: set[int] = set()
    waiting, without = [root], set(but)
    while waiting:
        pid = waiting.pop()
        if pid not in without:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time, that of reaped children included."""
    stats = [stat for pid in pids if (stat := _stat(pid)) is not None]
    return sum(int(ticks) for stat in stats for ticks in stat[_UTIME : _CSTIME + 1]) / TICKS_PER_S


def machine_s() -> float:
    """Busy time of all cores."""
    with Path("/proc/stat").open() as file:
        user, nice, system, _idle, _iowait, irq, softirq = map(int, file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS_PER_S


def memory_kib(pids: Iterable[int]) -> tuple[int, int]:
    """(PSS, RSS): shared pages divided among their users, and not."""
    pss = rss = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        for line in text.splitlines():
            if line.startswith("Pss:"):
                pss += int(line.split()[1])
            elif line.startswith("Rss:"):
                rss += int(line.split()[1])
    return pss, rss


def handles(pid: int) -> int:
    """Open descriptors."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  10,000 of them, each second


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208


def machine() -> dict[str, object]:
    """What the figures hold for."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "",
    )
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cores": os.cpu_count(),
        "cpu": model or platform.machine(),
        "memory_gib": round(memory_kib / 2**20, 1),
        "kernel": platform.release(),
        "load_1m": round(os.getloadavg()[0], 2),
    }
