"""The audit's verdict: a pin that was not looked up is never counted as safe."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.tidy import audit

SAFE = {"name": "idna", "version": "3.20", "vulns": []}
SKIPPED = {"name": "redis", "skip_reason": "Dependency not found on PyPI and could not be audited: redis (8.1.0)"}
KNOWN = {
    "name": "jinja2",
    "version": "2.10",
    "vulns": [
        {
            "id": "PYSEC-2019-217",
            "fix_versions": ["2.10.1"],
            "aliases": ["CVE-2019-10906"],
            "description": "sandbox escape",
        }
    ],
}


def test_a_known_vulnerability_is_a_line_with_the_release_that_mends_it() -> None:
    verdict = audit.judge([SAFE, KNOWN, KNOWN, SKIPPED])
    assert verdict == audit.Verdict(3, ("redis",), ("jinja2 2.10: PYSEC-2019-217, CVE-2019-10906; fixed in 2.10.1",))


def test_one_without_a_release_that_mends_it_says_so() -> None:
    open_one = KNOWN | {"vulns": [{"id": "PYSEC-1", "fix_versions": []}]}
    assert audit.judge([open_one]).known == ("jinja2 2.10: PYSEC-1; no release mends it yet",)


@pytest.mark.parametrize(("answers", "status", "said"), [
    ({"pypi": [SAFE]}, 0, "1 pins looked up by pypi, 0 known"),
    ({"pypi": [SAFE, KNOWN]}, 1, "VULNERABLE jinja2 2.10"),
    ({"pypi": [SKIPPED], "osv": [KNOWN]}, 1, "cannot ask pypi: it knows none of the versions"),
    ({"pypi": [SKIPPED, SAFE]}, 0, "pypi could not look up redis"),
    ({"pypi": [SKIPPED], "osv": [SKIPPED]}, audit.CANNOT, "SKIPPED"),
    ({}, audit.CANNOT, "cannot ask osv: ConnectionError: no route"),
])  # fmt: skip
def test_the_exit_status_is_the_verdict(
    answers: dict[str, object],
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        found = answers.get(command[-1])
        output = "" if found is None else json.dumps({"dependencies": found, "fixes": []})
        return subprocess.CompletedProcess(command, 0, output, "Traceback\nConnectionError: no route")

    monkeypatch.setattr(subprocess, "run", run)
    assert audit.main() == status
    assert said in capsys.readouterr().out


def test_a_service_that_hangs_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(command, audit.SERVICE_S)

    monkeypatch.setattr(subprocess, "run", run)
    assert audit.main() == audit.CANNOT
