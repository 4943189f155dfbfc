"""What setup.cfg asks for and what requirements/*.txt pin, for the house rules that compare them."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).parents[2]
_PIN: Final = re.compile(
    r"^(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>[^ \\]+)(?P<rest>.*(?:\n    .*)*)", re.MULTILINE
)


def pins(lock: str) -> dict[str, re.Match[str]]:
    """By name; groups `version`, and `rest`: marker, hashes and uv's remarks on who needs it."""
    return {match["name"]: match for match in _PIN.finditer((ROOT / f"requirements/{lock}.txt").read_text())}


def wanted(extra: str) -> list[Requirement]:
    """What setup.cfg asks for, with an extra or without."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].split("\n")
    lines += config["options.extras_require"][extra].split("\n") if extra else []
    found = [Requirement(line) for line in lines if line.strip()]
    nested = [more for one in found if one.name == "chatd" for name in one.extras for more in wanted(name)]
    return list({str(one): one for one in [*found, *nested] if one.name != "chatd"}.values())
