"""The filled database's plan: sizes, running numbers, times.

What PostgreSQL holds then is read back in tests/integration/test_bench.py.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import fill
from bench.fill import Log
from bench.target import TargetError


@pytest.mark.parametrize("rows", [2_000, 40_000, 1_000_000, 10_000_000])
def test_the_plan_has_the_rows_that_were_asked_for(rows: int) -> None:
    logs = fill.plan(rows)
    assert sum(log.rows for log in logs) == pytest.approx(rows, rel=0.02)
    assert len({(log.a, log.b) for log in logs}) == len(logs)
    assert all(log.a < log.b for log in logs)
    assert [log.id for log in logs] == list(range(1, len(logs) + 1))


def test_ten_million_have_long_logs_and_a_hub() -> None:
    logs = fill.plan(10_000_000)
    assert max(log.rows for log in logs) == 100_000
    assert sum(fill.HUB in (log.a, log.b) for log in logs) == 1_000
    assert sum(log.base > 0 for log in logs) == len(logs) // 5


@given(st.integers(0, 5_000))
def test_running_numbers_are_what_counting_gives(seq: int) -> None:
    messages = [n for n in range(1, seq + 1) if n % fill.PERIOD]
    assert fill.counts(seq) == (
        sum(fill.side_of(n) == 0 for n in messages),
        sum(fill.side_of(n) == 1 for n in messages),
    )


def test_an_edit_is_by_the_author_of_what_it_changes() -> None:
    assert all(fill.side_of(n) == fill.side_of(n - 1) for n in range(100, 5_000, 100))


@given(st.integers(1, 10_000), st.integers(0, 50), st.integers(1, 3_000))
def test_times_rise_along_a_log_and_span_thirty_days(id: int, hundreds: int, rows: int) -> None:
    log = Log(id, "a", "b", hundreds * 100, hundreds * 100 + rows, "small")
    times = [log.ts(seq, 1_000.0) for seq in range(log.base + 1, log.head + 1)]
    assert times == sorted(times)
    assert times[0] >= 1_000
    assert times[-1] < 1_000 + fill.DAYS * fill.DAY_S


def test_all_entries_come_once_in_the_order_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "SLICE_ROWS", 700)
    logs = fill.plan(4_000)
    entries = [entry for slice in fill._slices(logs, 0.0, 4_000) for entry in slice]
    assert {(log.id, seq) for _, log, seq in entries} == {
        (log.id, seq) for log in logs for seq in range(log.base + 1, log.head + 1)
    }
    assert len(entries) == sum(log.rows for log in logs)
    last: dict[int, int] = {}
    for _, log, seq in entries:
        assert seq == last.get(log.id, log.base) + 1
        last[log.id] = seq


def test_a_line_has_a_field_for_each_column_and_edits_point_back() -> None:
    log, rng, text = Log(1, "a", "b", 0, 250, "small"), random.Random(1), "x" * 4_096
    fields = {
        seq: fill._line(log, seq, log.ts(seq, 0.0), 0.0, rng, text).rstrip("\n").split("\t") for seq in range(1, 251)
    }
    assert {len(f) for f in fields.values()} == {13}
    assert fields[100][7:] == ["1", "\\N", "99", fields[99][2], "\\N", "\\N"]
    assert fields[99][11:] == ["100", fields[100][2]]
    assert len({f[3] for f in fields.values()}) == 250


# ---- a folder that is there already --------------------------------------------------------------


def test_a_filled_folder_is_used_again_until_it_is_too_old(tmp_path: Path) -> None:
    folder = tmp_path / "h"
    assert not fill.is_filled(folder, 4_000, 1_000.0)
    fill.mark(folder, 4_000, 1_000.0, done=True)
    assert fill.is_filled(folder, 4_000, 1_000.0 + fill.AGE_S_MAX - 1)
    assert not fill.is_filled(folder, 4_000, 1_000.0 + fill.AGE_S_MAX)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("rows", "done", "format"), [(5_000, True, fill.FORMAT), (4_000, False, fill.FORMAT), (4_000, True, 0)]
)
def test_what_cannot_be_used_goes(tmp_path: Path, rows: int, done: bool, format: int) -> None:
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / fill.MARK).write_text(json.dumps({"format": format, "rows": rows, "at": 1_000.0, "done": done}))
    assert not fill.is_filled(tmp_path / "h", 4_000, 1_001.0)
    assert not (tmp_path / "h").exists()


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(TargetError, match="another folder"):
        fill.is_filled(tmp_path, 4_000, 1_000.0)
    assert (tmp_path / "letters.txt").exists()
