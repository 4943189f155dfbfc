"""`make audit`: what is publicly known against the pinned versions. pip-audit asks, this program
judges the answer.

    exit status 0    nothing is known against any pin that could be looked up
                1    something is: a line for each names the pin, the vulnerability and the release that mends it
                77   nobody could be asked, which is said aloud; no verdict

pip-audit prints "No known vulnerabilities found" and exits with 0 also when it looked up nothing:
an index that does not answer for a version counts as "skipped". So its JSON is read, and never its
exit status.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
PIP_AUDIT: Final = ROOT / ".venv/tools/bin/pip-audit"
LOCKS: Final = ("dev", "tools")  # dev.txt holds all pins of the other two
SERVICES: Final = ("pypi", "osv")  # asked in this order, until one has looked up a pin
SERVICE_S: Final = 120.0
CANNOT: Final = 77


class Verdict(NamedTuple):
    looked_up: int
    skipped: tuple[str, ...]
    known: tuple[str, ...]


def judge(dependencies: list[dict[str, Any]]) -> Verdict:
    """Of `dependencies` in pip-audit's JSON: how many were looked up, the names of the others, a
    line for each vulnerability.
    """
    skipped = tuple(sorted({one["name"] for one in dependencies if "skip_reason" in one}))
    asked = [one for one in dependencies if "skip_reason" not in one]
    known = {_line(one["name"], one["version"], vulnerability) for one in asked for vulnerability in one["vulns"]}
    return Verdict(len(asked), skipped, tuple(sorted(known)))


def _line(name: str, version: str, vulnerability: dict[str, Any]) -> str:
    ids = ", ".join([vulnerability["id"], *vulnerability.get("aliases", ())])
    fixed = ", ".join(vulnerability["fix_versions"])
    return f"{name} {version}: {ids}; {f'fixed in {fixed}' if fixed else 'no release mends it yet'}"


def ask(service: str) -> tuple[Verdict, str]:
    """What a service says, and why it said nothing, if so."""
    files = [word for lock in LOCKS for word in ("-r", str(ROOT / f"requirements/{lock}.txt"))]
    command = [
        str(PIP_AUDIT),
        *files,
        "--disable-pip",
        "--require-hashes",
        "--progress-spinner",
        "off",
        "-f",
        "json",
        "-s",
        service,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SERVICE_S)
        verdict = judge(json.loads(done.stdout)["dependencies"])
    except subprocess.TimeoutExpired:
        return Verdict(0, (), ()), f"no answer within {SERVICE_S:g} s"
    except ValueError:  # it wrote no JSON
        return Verdict(0, (), ()), (done.stderr.strip().splitlines() or ["no word"])[-1][:200]
    return verdict, "" if verdict.looked_up else "it knows none of the versions"


def main() -> int:
    """Ask until a service has looked something up; print the verdict."""
    for service in SERVICES:
        verdict, why = ask(service)
        if verdict.looked_up:
            break
        print(f"audit: cannot ask {service}: {why}")
    else:
        print("audit: SKIPPED, no vulnerability service can be reached from here: nothing was checked")
        return CANNOT
    if verdict.skipped:
        print(f"audit: {service} could not look up {', '.join(verdict.skipped)}")
    for line in verdict.known:
        print(f"audit: VULNERABLE {line}")
    print(f"audit: {verdict.looked_up} pins looked up by {service}, {len(verdict.known)} known vulnerabilities")
    return 1 if verdict.known else 0


if __name__ == "__main__":
    sys.exit(main())
