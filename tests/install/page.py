"""The section Install of docs/operations.md as steps: what is typed, and what is written into the
files that `editor` opens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "operations.md"


class Step(NamedTuple):
    """One line to type. `text`: for `editor FILE`, the block that stands before it on the page."""

    command: str
    text: str = ""


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of the blocks of Install that are typed or written, in order."""
    section = page[page.index("## Install\n") :]
    section = section[: section.index("\n## ", 5)]
    return re.findall(r"```(sh|toml|nginx)\n(.*?)```", section, re.DOTALL)


def steps(page: str) -> Iterator[Step]:
    """The steps of Install, in order. A block that no `editor` follows is for reading alone."""
    text = ""
    for language, block in blocks(page):
        if language != "sh":
            text = block
            continue
        for command in filter(str.strip, block.splitlines()):
            if command.startswith("editor "):
                yield Step(command, text)
                text = ""
            else:
                yield Step(command)


def nginx_files(page: str) -> tuple[str, str]:
    """(certificate, key): where the page's nginx looks for them."""
    found = dict(re.findall(r"(ssl_certificate|ssl_certificate_key)\s+(\S+);", page))
    return found["ssl_certificate"], found["ssl_certificate_key"]
