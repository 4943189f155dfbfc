"""What prose names as a file of the repository is there: in the docs, in docstrings and comments,
in SQL.

A path is read from the root, or from one of the folders in `FROM`: `chatd/core/session.py`,
`core/session.py`, `core/session` and `session.py` are the same file. CHANGELOG.md and
docs/decisions tell history and may name what has gone.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
FROM: Final = (ROOT, ROOT / "chatd", ROOT / "tests", ROOT / "docs", ROOT / "sql", ROOT / "bench")
SOURCES: Final = sorted(path for folder in ("chatd", "tests", "bench") for path in (ROOT / folder).rglob("*.py"))
PAGES: Final = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "setup.cfg", "Makefile", "deploy/systemd/chatd.service")
    ),
    *sorted((ROOT / "sql").rglob("*.md")),
    *sorted((ROOT / "sql").rglob("*.sql")),
    *sorted((ROOT / "tests").rglob("README.md")),
    ROOT / "clients" / "js" / "README.md",
]

TOP: Final = "chatd|clients|docs|tests|bench|sql|deploy|requirements"
ROOMS: Final = "chat|client|cluster|conformance|core|loop|net|ops|postgres|web|wire|cluster/redis"
ENDINGS: Final = "py|sql|md|mjs|cfg"

# What stands before a path: nothing that makes it a part of a longer one, of a URL or of an
# expression.
START: Final = r"(?<![\w./:{$~@|-])"
PATHS: Final = (
    re.compile(rf"{START}(?:[\w.*-]+/)*[\w*-]+\.(?:{ENDINGS})\b"),  # a file by its ending, with or without its folder
    re.compile(rf"{START}(?:{TOP})/[\w./*-]*\w"),  # a file or a folder from the root
    re.compile(rf"{START}(?:{ROOMS})/[\w./*-]*\w"),  # a module of a room, without its ending, too
    re.compile(r"\]\(([^)#:\s]+)[)#]"),  # a link of Markdown to a file here
)
PLACEHOLDER: Final = re.compile(r"\b(?:NAME|NNNN\w*)\b|bench/out|clients/js/(?:dist|build|docs)\b")  # and what is built

# Files that a reader makes, examples of what a name looks like, and the package that the folder
# `sql` becomes.
NOT_OURS: Final = {
    "echo.py", "bot.py", "link.py", "send.py", "follow.py", "chat.py", "chat.mjs", "hello.mjs", "outbox.test.mjs",
    "peers/run.py",
    "chatd.sql", "sql/migrations/0007_pre_receipts.sql", "sql/migrations/0008_post_receipts.sql",
}  # fmt: skip


def _named(text: str) -> Iterator[str]:
    for pattern in PATHS:
        for match in pattern.finditer(text):
            path = (match[1] if pattern.groups else match[0]).strip("`")
            if not PLACEHOLDER.search(path) and path not in NOT_OURS:
                yield path


def _prose(path: Path) -> str:
    """Docstrings and comments; all of a page."""
    text = path.read_text()
    if path.suffix == ".sql":
        return "\n".join(line.partition("--")[2] for line in text.splitlines())
    if path.suffix != ".py":
        return text
    comments = [
        token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT
    ]
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
    return "\n".join([*docstrings, *comments])


def _is_there(path: str, beside: Path) -> bool:
    if re.fullmatch(r"docs/decisions/\d{4}", path):
        path += "-*.md"
    for folder in (*FROM, beside):
        if (folder / path).exists() or (folder / f"{path}.py").exists() or ("*" in path and any(folder.glob(path))):
            return True
    return "/" not in path and any(fnmatch(name, path) for name in _names())


@functools.cache
def _names() -> frozenset[str]:
    """Of all files, without their folders."""
    return frozenset(path.name for top in TOP.split("|") for path in (ROOT / top).rglob("*"))


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_what_prose_names_is_there(path: Path) -> None:
    assert [name for name in dict.fromkeys(_named(_prose(path))) if not _is_there(name, path.parent)] == []
