"""`process_*` where of /proc only the processes can be seen, as under the unit."""

from __future__ import annotations

import time
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector

from chatd.process_metrics import OwnProcess, age_s


def test_all_that_the_library_gives_is_there_without_the_rest_of_proc(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("/proc/self")
    assert list(ProcessCollector(proc=str(tmp_path), registry=None).collect()) == [], (
        "the library does without /proc/stat now"
    )
    registry = CollectorRegistry()
    OwnProcess(proc=str(tmp_path), registry=registry)
    for name in ("virtual_memory_bytes", "resident_memory_bytes", "cpu_seconds_total", "open_fds", "max_fds"):
        assert (registry.get_sample_value(f"process_{name}") or 0) > 0, name
    started = registry.get_sample_value("process_start_time_seconds")
    assert started is not None
    assert abs(time.time() - age_s() - started) < 5
