"""What `python -m bench browser` reads from a trace of Chromium."""

from __future__ import annotations

from typing import Any

from bench.scenarios.browser import MARK, TASK, longest_tasks


def event(name: str, ts: int, tdur: int = 0, tid: int = 1) -> dict[str, Any]:
    return {"name": name, "ts": ts, "pid": 7, "tid": tid, "tdur": tdur}


def test_the_longest_task_of_each_stretch_is_of_the_thread_that_made_the_marks() -> None:
    events = [
        event(TASK, 50, 90_000),  # before the first
        event(MARK, 100),
        event(TASK, 110, 3_000),
        event(TASK, 120, 9_500),
        event(TASK, 130, 70_000, tid=2),
        event("Layout", 140, 60_000),
        event(MARK, 200),
        event(TASK, 210, 4_000),
    ]
    assert longest_tasks(events[::-1]) == [9.5, 4.0]
