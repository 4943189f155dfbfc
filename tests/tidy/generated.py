"""The tables of docs that are made from the code: settings, metrics and bounds of
docs/operations.md, and what a message costs in docs/performance.md. And whole files: the frames
from docs/schema, the index of the decision records, the moving picture of README.md. The other
documents made from docs/schema are in tests/tidy/protocol_documents.py.

`make docs` writes them, a test holds them equal.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from chatd import config_sources
from chatd.metrics import COUNTERS, LABELLED
from chatd.ops import bounds
from tests.integration import test_costs
from tests.tidy import decisions_page, frames_page, moving_picture, protocol_documents

DOCS: Final = Path(__file__).parents[2] / "docs"
PAGE: Final = DOCS / "operations.md"


def metrics_table() -> str:
    rows = ["| counter | counts |", "|---|---|"]
    rows += [f"| `chatd_{name}_total` | {help} |" for name, help in COUNTERS.items()]
    rows += [f"| `chatd_{name}_total{{{', '.join(labels)}}}` | {help} |" for name, (help, labels) in LABELLED.items()]
    return "\n".join(rows) + "\n"


def costs_table() -> str:
    rows = ["| figure | measured | bound | what it is |", "|---|---|---|---|"]
    rows += [f"| {name} | {b.measured:,} | {b.most:,} | {b.why} |" for name, b in test_costs.BOUNDS.items()]
    return "\n".join(rows) + "\n"


TABLES: Final[dict[Path, dict[str, Callable[[], str]]]] = {
    PAGE: {"settings": config_sources.docs_table, "metrics": metrics_table, "bounds": bounds.docs_table},
    DOCS / "performance.md": {"costs": costs_table},
}

PAGES: Final[dict[Path, Callable[[], str]]] = {
    DOCS / "frames.md": frames_page.page,
    DOCS / "decisions" / "index.md": decisions_page.page,
    DOCS / "drawings" / "cut.svg": moving_picture.page,
}


def filled(page: Path) -> str:
    """The page with its generated tables as the code has them."""
    text = page.read_text()
    for name, table in TABLES[page].items():
        begin, end = f"<!-- begin {name}: made by `make docs` -->", f"<!-- end {name} -->"
        assert begin in text
        assert end in text
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n\n{table().strip()}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    for page in TABLES:
        page.write_text(filled(page))
    protocol_documents.write()
    for page, made in PAGES.items():
        page.write_text(made())
