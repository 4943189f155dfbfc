"""The code on the docs' pages can at least be read by what it is written in; `blocks` finds all of it."""

from __future__ import annotations

import ast
import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.site import pages
from tests.site.blocks import Block, blocks, files

PAGES = [pages.ROOT / "README.md", *sorted(pages.DOCS.rglob("*.md"))]


def _fault(block: Block) -> str:
    """What is wrong with the syntax of a block; empty if nothing is."""
    try:
        if block.language == "python":
            ast.parse(block.code)
        elif block.language == "json":
            json.loads(block.code)
        elif block.language == "toml":
            tomllib.loads(block.code)
        elif block.language == "sh":
            result = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True, check=False)
            return result.stderr
    except ValueError as error:
        return str(error)
    except SyntaxError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(pages.ROOT)))
def test_the_code_of_a_page_has_no_fault_of_syntax(page: Path) -> None:
    faults = [f"line {block.line}: {fault}" for block in blocks(page.read_text()) if (fault := _fault(block))]
    assert faults == []


@pytest.mark.parametrize(
    ("language", "code"), [("python", "def f(:\n"), ("json", "{'a': 1}\n"), ("toml", "a = \n"), ("sh", "if true\n")]
)
def test_a_seeded_fault_is_found(language: str, code: str) -> None:
    (block,) = blocks(f"# A\n\ntext\n\n```{language}\n{code}```\n")
    assert block == Block(language, code, 6)
    assert _fault(block)


def test_blocks_within_lists_and_without_a_language_are_found(tmp_path: Path) -> None:
    listed = "- so:\n\n    ```python\n    # a.py\n    if x:\n        y()\n    ```\n"
    text = f"{listed}\n```\nplain\n```\n\n```python\nunnamed()\n```\n"
    assert [(block.language, block.code) for block in blocks(text)] == [
        ("python", "# a.py\nif x:\n    y()\n"),
        ("", "plain\n"),
        ("python", "unnamed()\n"),
    ]
    assert files(text, tmp_path) == [tmp_path / "a.py"]
    assert (tmp_path / "a.py").read_text() == "# a.py\nif x:\n    y()\n"
