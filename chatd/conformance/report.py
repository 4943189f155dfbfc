"""What passed, what failed, and what was not run: as text, JSON and JUnit XML. Pure.

    report.add(case)                  as each ends
    report.summary()  as_json()  as_junit()

A case that was not run is never counted as passed; its reason says what it needs.
"""

from __future__ import annotations

import enum
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final
from xml.etree import ElementTree

from chatd import __version__

REASON_CHARS_MAX: Final = 2_000  # of a reason in a report
NO_XML: Final = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Verdict(enum.StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Case:
    """One vector, walk or schema. `reason`: why it failed, or what it needs to be run."""

    group: str
    name: str
    verdict: Verdict
    reason: str = ""
    seconds: float = 0.0

    @property
    def title(self) -> str:
        return f"{self.group}: {self.name}"

    def line(self) -> str:
        """One line for people."""
        word = {Verdict.PASSED: "ok  ", Verdict.FAILED: "FAIL", Verdict.NOT_RUN: "-   "}[self.verdict]
        reason = f"\n     {_short(self.reason)}" if self.verdict is Verdict.FAILED else ""
        return f"{word} {CONTROL.sub('?', self.title)}{reason}"


@dataclass(slots=True)
class ConformanceReport:
    """`subject`: what was tried; `notes`: what else a reader should know, such as the seed."""

    subject: str
    notes: dict[str, str] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)

    def add(self, case: Case) -> None:
        """Keep the outcome of one case."""
        self.cases.append(case)

    def count(self, verdict: Verdict) -> int:
        """How many cases have this verdict."""
        return sum(case.verdict is verdict for case in self.cases)

    @property
    def is_good(self) -> bool:
        """Nothing failed, and something was tried."""
        return not self.count(Verdict.FAILED) and self.count(Verdict.PASSED) > 0

    def summary(self) -> str:
        """Lines for people: what was not run, and why; what failed; the counts."""
        lines = []
        needs = Counter(case.reason for case in self.cases if case.verdict is Verdict.NOT_RUN)
        lines += [f"not run ({count}): {reason}" for reason, count in needs.most_common()]
        lines += [f"failed: {CONTROL.sub('?', case.title)}" for case in self.cases if case.verdict is Verdict.FAILED]
        lines += [f"{key}: {value}" for key, value in self.notes.items()]
        lines.append(", ".join(f"{self.count(verdict)} {verdict.value}" for verdict in Verdict) + f": {self.subject}")
        return "\n".join(lines)

    def as_json(self) -> str:
        """For machines; docs/conformance.md has the keys."""
        whole = {
            "format": 1,
            "protocol": "chatd.v1",
            "kit": __version__,
            "subject": self.subject,
            "notes": self.notes,
            "counts": {verdict.name.lower(): self.count(verdict) for verdict in Verdict},
            "cases": [
                {
                    "group": case.group,
                    "name": case.name,
                    "verdict": case.verdict.value,
                    "reason": case.reason[:REASON_CHARS_MAX],
                    "seconds": round(case.seconds, 3),
                }
                for case in self.cases
            ],
        }
        return json.dumps(whole, indent=1) + "\n"

    def as_junit(self) -> str:
        """The XML that CI systems read: a suite for each group."""
        root = ElementTree.Element("testsuites", name=_xml(f"chatd.v1 conformance of {self.subject}"))
        for group in dict.fromkeys(case.group for case in self.cases):
            cases = [case for case in self.cases if case.group == group]
            suite = ElementTree.SubElement(
                root,
                "testsuite",
                name=_xml(group),
                tests=str(len(cases)),
                failures=str(sum(case.verdict is Verdict.FAILED for case in cases)),
                skipped=str(sum(case.verdict is Verdict.NOT_RUN for case in cases)),
                time=f"{sum(case.seconds for case in cases):.3f}",
            )
            for case in cases:
                _add_case(suite, case)
        ElementTree.indent(root)
        return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_case(suite: ElementTree.Element, case: Case) -> None:
    element = ElementTree.SubElement(
        suite, "testcase", classname=_xml(case.group), name=_xml(case.name), time=f"{case.seconds:.3f}"
    )
    if case.verdict is Verdict.FAILED:
        ElementTree.SubElement(element, "failure", message=_xml(_short(case.reason))).text = _xml(case.reason)
    elif case.verdict is Verdict.NOT_RUN:
        ElementTree.SubElement(element, "skipped", message=_xml(case.reason))


def _short(reason: str) -> str:
    return CONTROL.sub(" ", reason[:REASON_CHARS_MAX])


def _xml(text: str) -> str:
    """Without what XML 1.0 cannot hold: servers send such characters, and reasons quote them."""
    return NO_XML.sub("\ufffd", text)
