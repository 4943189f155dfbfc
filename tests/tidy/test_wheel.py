"""What travels in the wheel: an installed chatd finds its SQL and its page without the checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_wheel_holds_sql_page_and_types(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("sql/migrations", "sql/functions", "sql/queries"):
        assert {f"chatd/{folder}/{p.name}" for p in (ROOT / folder).glob("*.sql")} <= names
    page = [path for path in (ROOT / "chatd/web").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(page) > 10
    assert {str(path.relative_to(ROOT)) for path in page} <= names
    assert {str(p.relative_to(ROOT)) for p in (ROOT / "chatd").rglob("*.py")} <= names
    assert {str(p.relative_to(ROOT)) for p in (ROOT / "chatd/conformance").rglob("*.json")} <= names
    assert "chatd/py.typed" in names
