"""The Markdown of docs/ as the docs site wants it, seen without building the site.

Each page is in the navigation. A list or a table has a blank line before it: where GitHub needs
none, Python-Markdown, which zensical renders with, takes it for text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.site import pages

MARKED: Final = re.compile(r"(?:[-*]|\d+\.) |\|")
FENCED: Final = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)


def _joined(text: str) -> Iterator[int]:
    """Lines where a list or table begins right behind the text of a paragraph."""
    text = FENCED.sub(lambda found: re.sub(r"[^\n]", "", found[0]), text)
    is_open = False  # a paragraph that is no list and no table
    for number, line in enumerate(text.splitlines(), 1):
        if is_open and MARKED.match(line):
            yield number
        if not line.strip() or line.startswith(("#", "    ", "<!--")) or MARKED.match(line):
            is_open = False
        elif not line.startswith(" "):
            is_open = is_open or _begins(text, number)


def _begins(text: str, number: int) -> bool:
    """Whether a line is the first of its block, or follows a heading."""
    before = text.splitlines()[number - 2] if number > 1 else ""
    return not before.strip() or before.startswith(("#", "<!--"))


@pytest.mark.parametrize("page", sorted(pages.DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_lists_and_tables_have_a_blank_line_before_them(page: Path) -> None:
    assert list(_joined(page.read_text())) == []


@pytest.mark.parametrize(
    "text", ["so:\n- a\n", "so:\n1. a\n", "so\n| a |\n|---|\n", "## A\nso:\n- a\n", "b\nso:\n- a\n"]
)
def test_a_seeded_fault_is_found(text: str) -> None:
    assert list(_joined(text)) != []


@pytest.mark.parametrize(
    "text", ["so:\n\n- a\n- b\n  c\n- d\n", "- a\nlazy\n- b\n", "## A\n- a\n", "```\nso:\n- a\n```\n"]
)
def test_what_is_right_is_no_fault(text: str) -> None:
    assert list(_joined(text)) == []


def test_every_page_is_in_the_navigation_with_what_it_is_for() -> None:
    found = {path.relative_to(pages.DOCS).as_posix() for path in pages.DOCS.rglob("*.md")}
    records = {path for path in found if re.match(r"decisions/\d", path)}
    listed = pages.in_order()
    assert {page.path for page in listed} == found - records, "nav of zensical.toml"
    assert [page.path for page in listed if not page.about] == [], "project.extra.about of zensical.toml"
    assert set(pages.PROJECT["extra"]["about"]) == {page.path for page in listed}
