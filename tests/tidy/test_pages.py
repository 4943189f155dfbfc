"""Pages of prose: the words that are not to come back in code are not in them, and lines are
narrow.

Tables and code may be wider. docs/decisions and CHANGELOG.md tell history; docs/protocol.md is a
contract whose text others have read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.tidy.test_prose import CODE_COLUMNS, WORDS

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "protocol.md"),
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
]
GENERATED: Final = re.compile(r"<!-- begin .*?<!-- end [^>]*-->", re.DOTALL)
NAMES: Final = re.compile(r"`[^`]*`")  # of keys and fields: they are what they are
CODE: Final = re.compile(r"^```.*?^```|(?<=\n\n)(?: {4}[^\n]*\n|\n(?= {4}))+", re.DOTALL | re.MULTILINE)


def _lines(page: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of what somebody has written, without code."""
    text = page.read_text()
    for pattern in (GENERATED, CODE):
        text = pattern.sub(lambda found: re.sub(r"[^\n]", "", found[0]), text)
    yield from enumerate(text.splitlines(), 1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_plain_and_its_lines_are_narrow(page: Path) -> None:
    words = [f"{n}: {found[0]}" for n, line in _lines(page) if (found := WORDS.search(NAMES.sub("", line)))]
    wide = [
        f"{n}: {len(line)}" for n, line in _lines(page) if len(line) > CODE_COLUMNS and not line.startswith(("|", "!["))
    ]
    assert words + wide == []


METRIC: Final = re.compile(r"(?<![\w{}])chatd_([a-z_]+?)(?:_total)?(?![\w.])")


def test_each_metric_that_a_page_names_is_exported() -> None:
    quoted = {found for path in (ROOT / "chatd").rglob("*.py") for found in re.findall(r'"[a-z_]+"', path.read_text())}
    named = {(page.name, found[1]) for page in PAGES for found in METRIC.finditer(page.read_text())}
    assert len(named) > 50
    missing = [(page, name) for page, name in sorted(named) if not {f'"{name}"', f'"chatd_{name}"'} & quoted]
    assert [f"{page}: chatd_{name}" for page, name in missing] == []
