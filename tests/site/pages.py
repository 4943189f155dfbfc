"""The pages of the docs site, as `nav` of zensical.toml has them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
CONFIG: Final = ROOT / "zensical.toml"
PROJECT: Final[dict[str, Any]] = tomllib.loads(CONFIG.read_text())["project"]


@dataclass(frozen=True, slots=True)
class Page:
    """`path`: from docs/, with slashes. `about`: what it is for, in one sentence."""

    section: str
    title: str
    path: str
    about: str

    @property
    def text(self) -> str:
        return (DOCS / self.path).read_text()


def in_order() -> list[Page]:
    return [
        Page(section, title, path, PROJECT["extra"]["about"].get(path, ""))
        for group in PROJECT["nav"]
        for section, entries in group.items()
        for entry in entries
        for title, path in entry.items()
    ]
