"""The rules of the house, executable: sizes, names, contracts, what the release holds."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "chatd").rglob("*.py"))
ALL_PYTHON = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "bench").rglob("*.py"))]
FUNCTION_LINES_MAX = 61
FILE_LINES_MAX = 450  # of chatd
TEST_FILE_LINES_MAX = 720
JAVASCRIPT = [
    path
    for package in ("clients/js", "web")
    for folder in ("src", "test", "scripts")
    for path in sorted((ROOT / package / folder).rglob("*"))
    if path.suffix in (".ts", ".tsx", ".mjs") and "generated" not in path.parts
]
WORDS_OF_NOTHING = re.compile(r"(^|_)(utils?|helpers?|managers?|misc|common)($|_)")


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
        if node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert long == []


def test_no_file_holds_more_than_one_idea() -> None:
    most = {p: FILE_LINES_MAX if p in SOURCES else TEST_FILE_LINES_MAX for p in ALL_PYTHON}
    assert [f"{p.relative_to(ROOT)}" for p in ALL_PYTHON if len(p.read_text().splitlines()) > most[p]] == []


def test_no_file_is_named_after_nothing() -> None:
    assert [str(p.relative_to(ROOT)) for p in ALL_PYTHON if WORDS_OF_NOTHING.search(p.stem)] == []


def test_every_module_opens_with_its_idea() -> None:
    assert [
        str(p.relative_to(ROOT))
        for p in SOURCES
        if p.stat().st_size and not ast.get_docstring(ast.parse(p.read_text()))
    ] == []


def test_no_todo_without_an_issue() -> None:
    word = "TO" + "DO"
    assert [
        f"{p.name}: {line}"
        for p in ALL_PYTHON
        for line in p.read_text().splitlines()
        if word in line and "#" not in line
    ] == []


def test_import_contracts_hold() -> None:
    result = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_package_with_code_is_released() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in SOURCES}
    assert found <= listed


def test_sql_is_in_files_with_a_comment_that_says_why() -> None:
    files = sorted((ROOT / "sql").rglob("*.sql"))
    assert files
    assert [str(p) for p in files if not p.read_text().startswith("--")] == []


def test_javascript_files_hold_one_idea_which_they_open_with() -> None:
    """Biome holds the length of functions and the width of lines."""
    assert JAVASCRIPT
    most = {path: FILE_LINES_MAX if "src" in path.parts else TEST_FILE_LINES_MAX for path in JAVASCRIPT}
    assert [str(p.relative_to(ROOT)) for p in JAVASCRIPT if len(p.read_text().splitlines()) > most[p]] == []
    assert [str(p.relative_to(ROOT)) for p in JAVASCRIPT if not p.read_text().startswith("/**")] == []
    assert [str(p.relative_to(ROOT)) for p in JAVASCRIPT if WORDS_OF_NOTHING.search(p.stem)] == []
