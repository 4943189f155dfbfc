"""What is made from the code is as the code makes it; the unit file is one that systemd takes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tidy import generated

ROOT = Path(__file__).parents[2]


def test_the_tables_of_the_operations_page_are_those_of_the_code() -> None:
    text = generated.PAGE.read_text()
    assert generated.fill(text) == text, "run `make docs`"


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this machine")
    unit = (ROOT / "deploy/systemd/chatd.service").read_text().replace("/opt/chatd/venv/bin/chatd", "/bin/true")
    (tmp_path / "chatd.service").write_text(unit)
    result = subprocess.run(["systemd-analyze", "verify", str(tmp_path / "chatd.service")], capture_output=True, text=True, check=False)
    assert [line for line in result.stderr.splitlines() if "chatd.service" in line and "Unknown" in line] == []
