"""docs/decisions/index.md: the decision records by number, made from their titles.

`make docs` writes it, and tests/tidy/test_generated_pages.py holds it as current.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parents[2] / "docs" / "decisions"

HEAD: Final = """\
# Decisions

<!-- Made from the titles of the records by `make docs`. -->

Why things are as they are. A record is half a page: the context, what was measured, the choice, and what follows from
it. A record is not rewritten when a later one supersedes it; it then names the later one. Numbers that are missing
were never given to a record that stayed.

"""


def page() -> str:
    lines = []
    for record in sorted(FOLDER.glob("[0-9]*.md")):
        number, _, title = record.read_text().partition("\n")[0].removeprefix("# ").partition(". ")
        assert number == str(int(record.name[:4])), f"{record.name} opens with another number"
        lines.append(f"| {number} | [{title}]({record.name}) |")
    return HEAD + "\n".join(["| | record |", "|---|---|", *lines]) + "\n"
