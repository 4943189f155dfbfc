"""README.md is the front door: short, and each thing that it says is held somewhere.

The programs in it run in tests/site/test_readme_programs.py; its picture is played by
tests/site/test_moving_picture.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from chatd.config import Settings

ROOT: Final = Path(__file__).parents[2]
TEXT: Final = (ROOT / "README.md").read_text()
LINES_MAX: Final = 150
TEST: Final = re.compile(r"\[`([^`]+)`\]\(([\w./-]+)\)")
PROGRAM_LINES_MAX: Final = 10  # without blank lines


def _section(heading: str, text: str = TEXT) -> str:
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def _rows(section: str) -> list[list[str]]:
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def _missing_tests(section: str) -> list[str]:
    """Promises without a test, and tests that are not where README says."""
    faults = []
    for promise, held in _rows(section):
        named = TEST.findall(held)
        faults += [] if named else [promise]
        for name, path in named:
            source = (ROOT / path).read_text() if (ROOT / path).exists() else ""
            line = (
                rf"^(?:async )?def {re.escape(name)}\(" if path.endswith(".py") else rf"^\s*test\('{re.escape(name)}'"
            )
            faults += [] if re.search(line, source, re.MULTILINE) else [f"{path}: {name}"]
    return faults


def _unmeasured(section: str, measured: str) -> list[str]:
    """Figures of the table that docs/performance.md does not have."""
    figures = {figure for row in _rows(section) for cell in row[1:] for figure in re.findall(r"\d[\d,.]*\d|\d", cell)}
    assert len(figures) > 10
    return [
        figure
        for figure in sorted(figures)
        if not re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d]|[.,]\d)", measured)
    ]


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) < LINES_MAX


def test_each_promise_names_a_test_that_is_there() -> None:
    assert len(_rows(_section("What it promises"))) >= 10
    assert _missing_tests(_section("What it promises")) == []


@pytest.mark.parametrize(
    "held",
    [
        "nobody",
        "[`test_it_is_short`](tests/tidy/test_nothing.py)",
        "[`test_it_is_long`](tests/tidy/test_readme.py)",
        "[`eleven tabs`](clients/js/test/tabs.test.ts)",
    ],
)
def test_a_promise_that_no_test_holds_is_found(held: str) -> None:
    assert len(_missing_tests(f"| promise | held by |\n|---|---|\n| **A** | {held} |\n")) == 1


def test_the_figures_beside_others_stand_in_the_page_of_what_was_measured() -> None:
    section = _section("Beside what you would take instead")
    measured = (ROOT / "docs" / "performance.md").read_text()
    assert _unmeasured(section, measured) == []
    assert _unmeasured(section.replace("18,000 |", "18,333 |"), measured) == ["18,333"]


def test_the_limits_are_the_defaults_of_the_settings() -> None:
    default = {name: field.default for name, field in Settings.model_fields.items()}
    section = _section("What it is not")
    for words in (
        f"{default['body_bytes_max']:,} bytes a message",
        f"**{default['retention_days']} days**",
        f"**{default['rate_messages']} messages in {default['rate_per_ms'] // 1000} s** a user",
        f"{default['devices_max']} devices",
        f"{default['new_conversations_per_hour']} new conversations an hour",
    ):
        assert words in section


def test_each_program_has_ten_lines_at_most() -> None:
    programs = re.findall(r"```(?:js|tsx|python)\n(.*?)```", TEXT, re.DOTALL)
    assert len(programs) == 3
    for program in programs:
        assert len([line for line in program.splitlines() if line.strip()]) <= PROGRAM_LINES_MAX + 1  # its name is one
