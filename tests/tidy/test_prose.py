"""Prose that can be counted: words that are not to come back, the width of lines, one class name once.

Rooms whose pass is still to come stand in `LEFT`; a room leaves it with its pass, and none comes back.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

CHATD = Path(__file__).parents[2] / "chatd"
SOURCES = sorted(CHATD.rglob("*.py"))
CODE_COLUMNS = 120
PROSE_COLUMNS = 100

# Load-bearing words of translated prose: each has a plain one ("says", "arrived", "since then", "again", "who").
WORDS = re.compile(r"\b(told|came|meanwhile|anew|whoever|whence|thereof)\b", re.IGNORECASE)

LEFT: set[str] = set()


def _room(path: Path) -> str:
    return path.relative_to(CHATD).parts[0] if path.parent != CHATD else "top"


def _prose(path: Path) -> list[tuple[int, str]]:
    """(line, text) of comments and docstrings."""
    source = path.read_text()
    lines = source.splitlines()
    found = [
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(text := node.body[0], ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
            and text.end_lineno is not None
        ):
            found += [(n, lines[n - 1]) for n in range(text.lineno, text.end_lineno + 1)]
    return found


DONE = [path for path in SOURCES if _room(path) not in LEFT]


@pytest.mark.parametrize("path", DONE, ids=lambda path: str(path.relative_to(CHATD)))
def test_prose_is_plain_and_lines_are_narrow(path: Path) -> None:
    prose = _prose(path)
    words = [f"{n}: {found[0]}" for n, text in prose if (found := WORDS.search(text))]
    wide = [f"{n}: {len(line)}" for n, line in enumerate(path.read_text().splitlines(), 1) if len(line) > CODE_COLUMNS]
    whole = path.read_text().splitlines()
    wide_prose = [
        f"{n}: prose of {len(whole[n - 1])}"
        for n, text in prose
        if whole[n - 1].strip().startswith(text.strip()) and len(whole[n - 1]) > PROSE_COLUMNS
    ]
    assert words + wide + wide_prose == []


def test_a_class_name_stands_for_one_thing_in_the_server() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in SOURCES:
        if _room(path) == "client":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(CHATD)))
    twice = {name: paths for name, paths in places.items() if len(paths) > 1}
    assert twice == {}


PRAGMA = re.compile(r"  # (type: ignore|noqa|fmt: ).*$")


def test_lines_of_tests_and_bench_are_narrow() -> None:
    root = CHATD.parent
    files = [path for folder in ("tests", "bench") for path in sorted((root / folder).rglob("*.py"))]
    assert [
        f"{path.relative_to(root)}:{n}: {len(line)}"
        for path in files
        for n, line in enumerate(path.read_text().splitlines(), 1)
        if len(PRAGMA.sub("", line)) > CODE_COLUMNS and " " in line.strip()
    ] == []
