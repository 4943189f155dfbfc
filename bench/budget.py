"""Runs everything against bench/budgets.toml; a table says what holds, and the exit status is 1 if
anything does not.

Each run is a process of its own (`python -m bench ...`), one after the other; its JSON and page go
to --out. A run that is void (its generator lagged), or that could not be measured, fails. `--quick`
takes minutes where the whole takes an hour or so; it is a check that nothing broke, and not a
measurement for the record.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import shlex
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import report
from bench.report import say
from bench.target import ROOT

EXAMPLES = """\
  python -m bench budget --quick                  some minutes
  python -m bench budget                          all, with 10M messages of history and a soak of 10 minutes
  python -m bench budget --only send-16000,idle   these alone
  python -m bench budget --read                   judge again what lies in --out, and run nothing"""
BUDGETS: Final = ROOT / "bench" / "budgets.toml"
NOT_HERE: Final = 3  # exit status of a scenario that cannot run on this machine, and says why


@dataclass(frozen=True, slots=True)
class Run:
    """An entry of the file. Figures by name -> bound."""

    name: str
    args: str
    quick: str | None = None
    most: Mapping[str, float] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    quick_most: Mapping[str, float] = field(default_factory=dict)
    quick_least: Mapping[str, float] = field(default_factory=dict)

    def command(self, quick: bool) -> list[str]:
        return shlex.split(self.quick if quick and self.quick else self.args)

    def bounds(self, quick: bool) -> tuple[dict[str, float], dict[str, float]]:
        if not quick:
            return dict(self.most), dict(self.least)
        return {**self.most, **self.quick_most}, {**self.least, **self.quick_least}


@dataclass(frozen=True, slots=True)
class Ratio:
    """`of` and `to` are run.figure.

    At least `least`, at most `most`. Without `quick` it is left out where the runs are shorter and
    smaller.
    """

    name: str
    of: str
    to: str
    least: float = 0.0
    most: float = math.inf
    quick: bool = True


@dataclass(frozen=True, slots=True)
class Line:
    """Of the table."""

    run: str
    what: str
    bound: str
    found: str
    word: str  # ok, OVER, VOID, FAILED, passed over


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="shorter and smaller runs")
    parser.add_argument("--only", metavar="NAME,...", help="these runs alone; ratios of others are left out")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "bench" / "out" / "budget",
        metavar="DIR",
        help="of the files (default: bench/out/budget)",
    )
    parser.add_argument("--budgets", type=Path, default=BUDGETS, metavar="FILE", help="(default: bench/budgets.toml)")
    parser.add_argument("--read", action="store_true", help="run nothing: judge what lies in --out")
    parser.add_argument(
        "--add", default="", metavar="FLAGS", help="further flags of every run, such as --add='--source ../old'"
    )


async def run(options: argparse.Namespace) -> int:
    runs, ratios = load(options.budgets)
    if options.only is not None:
        names = options.only.split(",")
        if unknown := set(names) - {one.name for one in runs}:
            print(
                f"bench budget: no run is called {', '.join(sorted(unknown))}; there are"
                f" {', '.join(one.name for one in runs)}",
                file=sys.stderr,
            )
            return report.FAILED
        runs = [one for one in runs if one.name in names]
    lines: list[Line] = []
    found: dict[str, dict[str, Any]] = {}
    for n, one in enumerate(runs, 1):
        file = options.out / f"{one.name}.json"
        if not options.read:
            say(f"{n} of {len(runs)}: {one.name}")
            status, seconds = await _run(one.command(options.quick) + shlex.split(options.add), file)
            say(f"{one.name}: {seconds:.0f} s")
            if status == NOT_HERE:
                lines.append(Line(one.name, "", "", "", "passed over"))
                continue
        try:
            found[one.name] = json.loads(file.read_text())
        except (OSError, ValueError):
            lines.append(Line(one.name, "", "", "no figures", "FAILED"))
            continue
        lines += judge(one, found[one.name], options.quick)
    lines += [
        line
        for ratio in ratios
        if (ratio.quick or not options.quick) and (line := judge_ratio(ratio, found)) is not None
    ]
    print(table(lines))
    for name, figures in found.items():
        if (note := report.disturbed(figures)) is not None:
            print(f"note: {name}: {note}")
    failed = sum(line.word in ("OVER", "VOID", "FAILED") for line in lines)
    passed_over = sum(line.word == "passed over" for line in lines)
    left = f", {passed_over} passed over" if passed_over else ""
    print(f"{len(lines) - failed - passed_over} hold, {failed} do not{left}; files in {options.out}")
    return report.OVER if failed else report.WITHIN


def load(file: Path) -> tuple[list[Run], list[Ratio]]:
    """The budgets. Raises ValueError, TypeError where the file is wrong."""
    content = tomllib.loads(file.read_text())
    return [Run(**entry) for entry in content["run"]], [Ratio(**entry) for entry in content.get("ratio", [])]


async def _run(command: Sequence[str], file: Path) -> tuple[int, float]:
    """Exit status and seconds.

    What the run says goes to stderr; the old file goes, so that a run that fails has none.
    """
    file.unlink(missing_ok=True)
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench", *command, "--json", str(file), cwd=ROOT, stdout=asyncio.subprocess.DEVNULL
    )  # fmt: skip
    try:
        return await process.wait(), time.monotonic() - started
    except asyncio.CancelledError:
        process.terminate()  # it stops its servers
        await process.wait()
        raise


def judge(one: Run, figures: Mapping[str, Any], quick: bool) -> list[Line]:
    """A line for each bound."""
    most, least = one.bounds(quick)
    lines = []
    for sign, bounds in (("<=", most), (">=", least)):
        for name, bound in bounds.items():
            value = figures.get(name)
            holds = value is not None and (value <= bound if sign == "<=" else value >= bound)
            word = "VOID" if figures.get("void") else "ok" if holds else "OVER"
            lines.append(Line(one.name, name, f"{sign} {bound:,g}", "none" if value is None else f"{value:,g}", word))
    return lines


def judge_ratio(ratio: Ratio, found: Mapping[str, Mapping[str, Any]]) -> Line | None:
    """None if one of the two was not run."""
    (of_run, _, of), (to_run, _, to) = ratio.of.partition("."), ratio.to.partition(".")
    if of_run not in found or to_run not in found:
        return None
    a, b = found[of_run].get(of), found[to_run].get(to)
    value = a / b if a is not None and b else None
    word = (
        "VOID"
        if found[of_run].get("void") or found[to_run].get("void")
        else "ok"
        if value is not None and ratio.least <= value <= ratio.most
        else "OVER"
    )
    bounds = [f">= {ratio.least:g}"] * (ratio.least > 0) + [f"<= {ratio.most:g}"] * math.isfinite(ratio.most)
    return Line("ratio", ratio.name, " ".join(bounds), "none" if value is None else f"{value:.2f}", word)


def table(lines: Sequence[Line]) -> str:
    rows = [
        ("run", "figure", "bound", "found", ""),
        *((line.run, line.what, line.bound, line.found, line.word) for line in lines),
    ]
    return report.columns(rows, left=(0, 1, 4))
