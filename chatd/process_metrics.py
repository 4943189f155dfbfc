"""`process_*`:

CPU, memory, descriptors and start of this process, as all exporters of Prometheus name them.

prometheus_client's collector asks /proc/stat when the machine was started, and gives nothing at all
where it may not read that: under the unit, whose `ProcSubset=pid` leaves of /proc the processes
alone. The clock that counts from the machine's start tells the same.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from prometheus_client import ProcessCollector


class OwnProcess(ProcessCollector):
    """All that it gives is in /proc/self."""

    def _boot_time(self) -> float:
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def age_s() -> float:
    """How long ago this process was started, Python's own start included; 0.0 where that cannot be
    known.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    return 0.0
