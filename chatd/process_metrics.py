"""The metrics `process_*`: CPU, memory, descriptors and start time, with Prometheus' usual names.

prometheus_client's collector reads the machine's start time from /proc/stat, and returns nothing if
it may not read that. The systemd unit's `ProcSubset=pid` leaves only the processes in /proc. So the
start time is computed from CLOCK_BOOTTIME instead.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from prometheus_client import ProcessCollector


class OwnProcess(ProcessCollector):
    """A collector that needs nothing of /proc but /proc/self."""

    def _boot_time(self) -> float:
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def age_s() -> float:
    """Seconds since this process was started, Python's own start included; 0.0 if unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    return 0.0
