"""What is better or worse in B than in A, and what is noise.

The rule: each run is cut into windows of the same length (or into parts, steps, storms), and a
figure has a value in each. Its centre is the median of the windows; its noise is the spread of a
single window about it (1.4826 times the median absolute deviation). B is better or worse if the
centres differ by more than

    twice the root of the sum of both runs' squared noise, and by more than --least (5 %) of A's centre

A single window's spread, not that of the mean: windows of one run share their machine, their
database and their neighbours, so runs differ more than the mean's error says. At least 5 windows in
each are asked for; a figure with fewer is shown without a verdict. Counts of what must not happen
(lost, duplicated, reordered, stray, missing, wrong, unanswered) know no noise: more is worse.
Percentiles that never came are the worst there is. Two runs are never enough for a claim: repeat,
in turns (A B A B).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import report

EXAMPLES = """\
  python -m bench send --source ../old --json a.json && python -m bench send --json b.json
  python -m bench compare a.json b.json
  python -m bench compare a.json b.json --strict     exit status 1 if anything is worse"""

WINDOWS_MIN: Final = 5
SPREADS: Final = 2.0
MAD: Final = 1.4826  # the standard deviation of a normal distribution is so many of its median absolute deviations
NEVER: Final = ("lost", "duplicated", "reordered", "stray", "missing", "wrong", "unanswered")
MORE_IS_BETTER: Final = ("hellos_per_s", "delivered_per_s", "highest_rate")
NOT_JUDGED: Final = ("generator_", "other_", "client_loop_", "rate")  # the bench's own, or what was asked for


class Verdict(NamedTuple):
    """`word`: better, worse, same, unknown (too few windows to tell)."""

    name: str
    a: float | None
    b: float | None
    change: float | None  # B's part above A; None where one of them never came
    noise: float | None  # how large a change must be to count, as a part of A
    word: str


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A.json", help="what a run wrote: before")
    parser.add_argument("b", type=Path, metavar="B.json", help="after")
    parser.add_argument(
        "--least", type=float, default=5.0, metavar="PERCENT", help="changes below it never count (default: 5)"
    )
    parser.add_argument("--strict", action="store_true", help="exit status 1 if anything is worse")


def run(options: argparse.Namespace) -> int:
    try:
        a, b = (json.loads(file.read_text()) for file in (options.a, options.b))
        verdicts = compare(a, b, options.least / 100)
    except (OSError, ValueError, KeyError) as e:
        print(f"bench compare: these are not two runs of the bench: {e}")
        return report.FAILED
    for warning in differences(a, b):
        print(f"note: {warning}")
    print(table(verdicts))
    found = {word: sum(v.word == word for v in verdicts) for word in ("better", "worse", "same", "unknown")}
    print(", ".join(f"{n} {word}" for word, n in found.items()))
    if a["void"] or b["void"]:
        print("VOID: the generator of one was late itself; nothing follows")
        return report.OVER
    return report.OVER if options.strict and found["worse"] else report.WITHIN


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What makes two runs not comparable, or says what was compared."""
    found = []
    if a["scenario"] != b["scenario"]:
        raise ValueError(f"{a['scenario']} and {b['scenario']} are different scenarios")
    for part in ("machine", "options", "settings", "versions"):
        names = [
            name for name in {**a[part], **b[part]} if a[part].get(name) != b[part].get(name) and name != "load_1m"
        ]
        found += [f"{part}: {name} is {a[part].get(name)} in A, {b[part].get(name)} in B" for name in names]
    found += [f"{which}: {note}" for which, run in (("A", a), ("B", b)) if (note := report.disturbed(run)) is not None]
    return found + [f"{which} is void" for which, run in (("A", a), ("B", b)) if run["void"]]


def compare(a: dict[str, Any], b: dict[str, Any], least: float) -> list[Verdict]:
    """All figures that both have and that can be judged."""
    found = [_count(name, a[name], b[name]) for name in NEVER if name in a and name in b]
    both = [name for name in (a["windows"] or [{}])[0] if name in (b["windows"] or [{}])[0]]
    names = [name for name in both if not name.startswith(NOT_JUDGED) and "generator_" not in name]
    found += [
        judge(name, [w.get(name) for w in a["windows"]], [w.get(name) for w in b["windows"]], least) for name in names
    ]
    rest = [
        n for n in a if n in b and n not in names and n not in NEVER and _is_figure(n, a[n]) and _is_figure(n, b[n])
    ]
    return found + [_single(name, a[name], b[name]) for name in rest]


def _is_figure(name: str, value: object) -> bool:
    measured = name.endswith(("_ms", "_per_msg", "_kib_per_connection", "_percent", "_growth")) or name in (
        *MORE_IS_BETTER,
        "seconds_to_all",
    )
    return measured and not name.startswith(NOT_JUDGED) and (value is None or isinstance(value, int | float))


def judge(name: str, a: list[float | None], b: list[float | None], least: float) -> Verdict:
    """By the rule above. A window that has no value never came to its end: it is infinitely bad."""
    bad = -math.inf if name in MORE_IS_BETTER else math.inf
    xs, ys = ([bad if value is None else float(value) for value in several] for several in (a, b))
    x, y = statistics.median(xs), statistics.median(ys)
    if not (math.isfinite(x) and math.isfinite(y)):
        word = "same" if x == y else "worse" if y == bad else "better"
        return Verdict(
            name, _known(x), _known(y), None, None, word if min(len(xs), len(ys)) >= WINDOWS_MIN else "unknown"
        )
    bound = max(SPREADS * math.hypot(spread(xs, x), spread(ys, y)), least * abs(x))
    change, noise = ((y - x) / abs(x), bound / abs(x)) if x else (None, None)
    if min(len(xs), len(ys)) < WINDOWS_MIN or not math.isfinite(bound):
        return Verdict(name, x, y, change, noise, "unknown")
    if abs(y - x) <= bound:
        return Verdict(name, x, y, change, noise, "same")
    return Verdict(name, x, y, change, noise, "better" if (y > x) == (name in MORE_IS_BETTER) else "worse")


def spread(values: list[float], centre: float) -> float:
    return MAD * statistics.median(abs(value - centre) for value in values)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _count(name: str, a: int, b: int) -> Verdict:
    word = "same" if a == b else "worse" if b > a else "better"
    return Verdict(name, a, b, None, 0.0, word)


def _single(name: str, a: float | None, b: float | None) -> Verdict:
    change = (b - a) / abs(a) if a and b is not None else None
    return Verdict(name, a, b, change, None, "unknown")


def table(verdicts: list[Verdict]) -> str:
    def number(value: float | None) -> str:
        return "never" if value is None else f"{value:,.6g}"

    def percent(value: float | None, sign: str = "+") -> str:
        return "" if value is None else f"{100 * value:{sign}.1f} %"

    rows = [("figure", "A", "B", "change", "noise", "")]
    for v in verdicts:
        word = v.word if v.word != "unknown" else "one value each" if v.noise is None else "too few windows"
        rows.append((v.name, number(v.a), number(v.b), percent(v.change), percent(v.noise, ""), word))
    return report.columns(rows, left=(0, 5))
