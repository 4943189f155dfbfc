"""The page's own tests, run by Node:

`tests/web/*.test.mjs` over the modules in `chatd/web`. Without Node they are skipped, and say so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[1] / "web"
PAGE = Path(__file__).resolve().parents[2] / "chatd" / "web"
NODE = shutil.which("node")
TIMEOUT_S = 120
# tests/web/test_page.py
NEED_A_BROWSER = {
    "app.js",
    "dom.js",
    "view-composer.js",
    "view-list.js",
    "view-message.js",
    "view-pane.js",
    "view-signin.js",
}


@pytest.mark.skipif(NODE is None, reason="node is not installed (20 or later runs the page's tests)")
def test_the_page_passes_its_own_tests() -> None:
    assert NODE is not None
    files = sorted(str(file) for file in WEB.glob("*.test.mjs"))
    assert files
    env = {**os.environ, "NODE_OPTIONS": ""}
    run = subprocess.run(
        [NODE, "--test", *files], capture_output=True, text=True, timeout=TIMEOUT_S, env=env, check=False
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    passed = re.search(r"^(?:#|ℹ) pass (\d+)$", run.stdout, re.MULTILINE)
    assert passed is not None, run.stdout
    assert int(passed[1]) > len(files)


def test_every_module_without_dom_has_a_test_that_imports_it() -> None:
    tests = "\n".join(file.read_text() for file in WEB.glob("*.test.mjs"))
    imported = set(re.findall(r"chatd/web/([a-z-]+\.js)'", tests))
    assert {file.name for file in PAGE.glob("*.js")} == imported | NEED_A_BROWSER


def test_the_page_never_turns_text_into_markup() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new"
        r" Function|setAttribute\('style'|javascript:|DOMParser|setHTML"
    )
    for file in PAGE.iterdir():
        if file.suffix in {".js", ".html", ".svg"}:
            assert not forbidden.search(file.read_text()), file.name


def test_the_document_has_no_inline_script_or_style() -> None:
    text = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|<script(?![^>]* src=)|\son[a-z]+=|\sstyle=", text)
    assert not re.search(r"https?://", text)
