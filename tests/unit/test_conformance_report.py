"""Reports of the conformance kit: text, JSON, JUnit XML."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from chatd.conformance.report import Case, ConformanceReport, Verdict

GOOD = Case("01_a", "it does", Verdict.PASSED, seconds=1.5)
BAD = Case("01_a", "it says <so>\x00\x1b[31m", Verdict.FAILED, "got '\x00\ud800]]>'\nand more", 0.25)
LEFT = Case("02_b", "it could", Verdict.NOT_RUN, "needs a server with x=1")


def report(*cases: Case) -> ConformanceReport:
    made = ConformanceReport("ws://h/ws", {"seed": "7"})
    for case in cases:
        made.add(case)
    return made


def test_what_was_not_run_is_neither_passed_nor_failed() -> None:
    assert report(GOOD, LEFT).is_good
    assert not report(LEFT).is_good, "nothing was tried"
    assert not report(GOOD, BAD).is_good
    assert not report().is_good


def test_the_summary_says_what_failed_and_what_the_rest_needs() -> None:
    lines = report(GOOD, BAD, LEFT, LEFT).summary().splitlines()
    assert lines == [
        "not run (2): needs a server with x=1",
        "failed: 01_a: it says <so>??[31m",
        "seed: 7",
        "1 passed, 1 failed, 2 not run: ws://h/ws",
    ]


def test_a_line_shows_no_control_character() -> None:
    assert GOOD.line() == "ok   01_a: it does"
    assert LEFT.line() == "-    02_b: it could"
    assert not any(ord(c) < 32 and c != "\n" for c in BAD.line())


def test_json_has_each_case_and_the_counts() -> None:
    made = json.loads(report(GOOD, BAD, LEFT).as_json())
    assert made["counts"] == {"passed": 1, "failed": 1, "not_run": 1}
    assert [case["verdict"] for case in made["cases"]] == ["passed", "failed", "not run"]
    assert made["cases"][2]["reason"] == "needs a server with x=1"
    assert made["notes"] == {"seed": "7"}


def test_junit_is_xml_whatever_a_server_sent() -> None:
    root = ElementTree.fromstring(report(GOOD, BAD, LEFT).as_junit().encode())
    first, second = root.findall("testsuite")
    assert (first.get("tests"), first.get("failures"), first.get("skipped")) == ("2", "1", "0")
    assert (second.get("failures"), second.get("skipped")) == ("0", "1")
    (failure,) = root.iter("failure")
    assert "]]>" in str(failure.text)
    (skipped,) = root.iter("skipped")
    assert skipped.get("message") == LEFT.reason
