"""The code blocks of the docs' pages.

blocks(page)        all fenced blocks, in order
files(page, folder) writes the blocks whose first line is a comment with the name of a file
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FENCE: Final = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_NAME: Final = re.compile(r"(?:#|//) ([\w.-]+\.\w+)\n")


@dataclass(frozen=True, slots=True)
class Block:
    """`line`: of the page, where the code begins."""

    language: str
    code: str
    line: int


def blocks(text: str) -> list[Block]:
    found = []
    for match in _FENCE.finditer(text):
        code = re.sub(f"^{match[1]}", "", match[3], flags=re.MULTILINE)
        found.append(Block(match[2], code, text.count("\n", 0, match.start(3)) + 1))
    return found


def files(text: str, folder: Path) -> list[Path]:
    written = []
    for block in blocks(text):
        if name := _NAME.match(block.code):
            path = folder / name[1]
            path.write_text(block.code)
            written.append(path)
    return written
