"""The tables of docs/operations.md that are made from the code:

`make docs` writes them, a test holds them equal.
"""

from __future__ import annotations

from pathlib import Path

from chatd import config
from chatd.metrics import COUNTERS, LABELLED
from chatd.ops import bounds

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def metrics_table() -> str:
    rows = ["| counter | counts |", "|---|---|"]
    rows += [f"| `chatd_{name}_total` | {help} |" for name, help in COUNTERS.items()]
    rows += [f"| `chatd_{name}_total{{{', '.join(labels)}}}` | {help} |" for name, (help, labels) in LABELLED.items()]
    return "\n".join(rows) + "\n"


def fill(text: str) -> str:
    """The page with its generated parts made anew."""
    for name, table in (
        ("settings", config.docs_table()),
        ("metrics", metrics_table()),
        ("bounds", bounds.docs_table()),
    ):
        begin, end = f"<!-- begin {name}: made by `make docs` -->", f"<!-- end {name} -->"
        assert begin in text
        assert end in text
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n\n{table.strip()}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
