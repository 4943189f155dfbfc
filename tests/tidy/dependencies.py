"""What each dependency costs:

`python -m tests.tidy.dependencies [extra]` prints the figures of docs/decisions/0037.

For each requirement of setup.cfg: its version, MB of its files, what it brings that no other
requirement does and the MB of that, and for a fresh interpreter the CPU ms and MB of resident
memory to import what chatd imports of it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tidy.locked import ROOT, wanted

RUNS: Final = 7  # the least of them: others use the machine, too
PROBE: Final = """
import argparse, asyncio, email, hashlib, ssl, time, tomllib, urllib.parse  # chatd needs these anyway
resident = lambda: int(open("/proc/self/statm").read().split()[1]) / 256
before, started = resident(), time.process_time()
{imports}
print((time.process_time() - started) * 1000, resident() - before)
"""


def closure(requirement: Requirement) -> set[str]:
    """The distributions that it needs on this machine, itself included."""
    found: set[str] = set()
    waiting = [requirement]
    while waiting:
        one = waiting.pop()
        found.add(canonicalize_name(one.name))
        needed = [more for more in map(Requirement, metadata.requires(one.name) or []) if _is_needed(more, one.extras)]
        waiting += [more for more in needed if canonicalize_name(more.name) not in found]
    return found


def _is_needed(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def installed_mb(name: str) -> float:
    """MB of a distribution's files, byte code included."""
    paths = [Path(str(file.locate())) for file in metadata.files(name) or []]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def imports(name: str) -> list[str]:
    """The modules of a distribution that chatd imports, as statements; none for what is only run or
    loaded by another.
    """
    tops = {
        top
        for top, owners in metadata.packages_distributions().items()
        if name in {canonicalize_name(owner) for owner in owners}
    }
    modules = set()
    for path in (ROOT / "chatd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module)
    return sorted(f"import {module}" for module in modules if module.partition(".")[0] in tops)


def import_cost(statements: list[str]) -> tuple[float, float]:
    """CPU ms and resident MB of running them in a fresh interpreter."""
    command = [sys.executable, "-I", "-c", PROBE.format(imports="\n".join(statements))]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(RUNS)]
    return min(float(ms) for ms, _ in runs), min(float(mb) for _, mb in runs)


def main(extra: str = "") -> None:
    """Print a row for each requirement."""
    plain = {str(one) for one in wanted("")}
    requirements = [one for one in wanted(extra) if not extra or str(one) not in plain]
    needs = {str(one): closure(one) for one in {*requirements, *wanted("")}}
    print(
        "| requirement | version | MB | brings alone | MB with these | import ms | import MB"
        " |\n|---|---|---|---|---|---|---|"
    )
    for one in sorted(requirements, key=lambda each: each.name):
        name = canonicalize_name(one.name)
        others = set().union(*(theirs for other, theirs in needs.items() if other != str(one)))
        alone = sorted(needs[str(one)] - others - {name})
        ms, mb = import_cost(statements) if (statements := imports(name)) else (0.0, 0.0)
        whole = installed_mb(name) + sum(map(installed_mb, alone))
        cells = (
            name,
            metadata.version(name),
            f"{installed_mb(name):.1f}",
            ", ".join(alone),
            f"{whole:.1f}",
            f"{ms:.0f}",
            f"{mb:.1f}",
        )
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:2])
