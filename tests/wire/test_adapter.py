"""The line protocol for clients: a program that keeps it, and programs that do not."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

import pytest

from chatd.conformance import vectors
from chatd.conformance.adapter import Adapter
from chatd.conformance.against_client import ClientTrial
from chatd.conformance.against_rules import Walks
from chatd.conformance.report import Case, ConformanceReport, Verdict
from chatd.conformance.values import Mismatch
from chatd.errors import ChatdError

ROOT: Final = Path(__file__).parents[2]
READY: Final = json.dumps({"event": "ready", "can": ["send", "fly"]})


def program(*statements: str) -> str:
    """The command of a program that says `ready` and then does this."""
    code = "\n".join(["import json, sys", f"print({READY!r}, flush=True)", *statements])
    return shlex.join([sys.executable, "-c", code])


async def reason(command: str) -> str:
    """Why it fails while something is awaited from it."""
    async with Adapter(command) as adapter:
        with pytest.raises(Mismatch) as e:
            await adapter.unless_failed(adapter.ended())
    return str(e.value)


async def test_what_the_program_says_is_what_the_runner_gets() -> None:
    lines = [
        {"event": "entry", "c": "12", "seq": 1, "kind": "message", "body": "hi"},
        {"event": "entry", "c": "12", "seq": 2, "kind": "sticker"},
        {"event": "log", "text": "of no matter"},
        {"event": "done", "n": 1, "seq": 3},
        {"event": "refused", "n": 2, "code": "too_late"},
        {"event": "ended"},
    ]
    said = "".join(json.dumps(line) + "\n" for line in lines)
    command = program("sys.stdin.readline(), sys.stdin.readline()", f"print({said!r}, flush=True)", "sys.stdin.read()")
    async with Adapter(command) as adapter:
        assert adapter.can == {"send"}
        results = adapter.ask("send", {"to": "bob", "body": "x"}), adapter.ask("edit", {"to": "bob"})
        await adapter.ended()
        assert await adapter.shown(1) == [{"c": "12", "seq": 1, "kind": "message", "body": "hi"}]
        assert [(await one).get(key) for one, key in zip(results, ("seq", "code"), strict=True)] == [3, "too_late"]


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("sys.exit('out of stamps')", "status 1: out of stamps"),
        ("print('hello')", "not as docs/conformance.md says"),
        ("print('[]')", "expected an object"),
        ("print('{}')", "event"),
        ("print(json.dumps({'event': 'dance'}))", "no event 'dance'"),
        ("print(json.dumps({'event': 'entry'}))", "seq"),
        ("print(json.dumps({'event': 'done', 'n': 99}))", "99"),
    ],
)
async def test_a_program_that_ends_or_says_nonsense_fails_at_once(statement: str, says: str) -> None:
    assert says in await reason(program(statement))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("/nonexistent/client", "cannot be run"),
        (shlex.join([sys.executable, "-c", "print('hello')"]), "its first line must be `ready`"),
        (shlex.join([sys.executable, "-c", "raise SystemExit('no')"]), "status 1: no"),
    ],
)
async def test_a_program_that_does_not_start_is_one_line(command: str, says: str) -> None:
    with pytest.raises(ChatdError, match=says):
        async with Adapter(command):
            pass


async def test_a_program_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatd.conformance.adapter.END_S", 0.2)
    async with Adapter(program("import time", "while True: time.sleep(60)")) as adapter:
        process = adapter._process
    assert process is not None
    assert process.returncode == -9


async def trial(command: str, *files: str, jobs: int = 3) -> ConformanceReport:
    report = ConformanceReport(command)
    some = [one for one in vectors.load("client") if not files or one.file in files]
    await ClientTrial(command, report, lambda _: None, jobs=jobs).run(some)
    return report


async def walked(command: str, walks: Walks, jobs: int = 4) -> ConformanceReport:
    report = ConformanceReport(command)
    await ClientTrial(command, report, lambda _: None, jobs=jobs).run([], walks, walks.names())
    return report


def bad(report: ConformanceReport) -> list[Case]:
    return [case for case in report.cases if case.verdict is not Verdict.PASSED]


PYTHON: Final = f"{shlex.quote(sys.executable)} {ROOT / 'clients' / 'adapters' / 'python.py'}"


async def test_the_python_sdk_behind_its_adapter_does_what_an_application_asks() -> None:
    report = await trial(PYTHON, "04_requests")
    assert bad(report) == []
    assert report.notes == {"client": "chatd's Python SDK"}


@pytest.mark.slow
async def test_the_python_sdk_behind_its_adapter_passes_all() -> None:
    report = await trial(PYTHON)
    assert bad(report) == []


@pytest.mark.skipif(shutil.which("perl") is None, reason="perl is not on this machine")
async def test_a_client_in_perl_that_was_written_from_the_page_passes_all() -> None:
    """Nothing but Perl's own modules and docs/protocol.md: a third implementation."""
    report = await trial(f"perl {ROOT / 'clients' / 'adapters' / 'client.pl'}")
    assert bad(report) == []


async def test_what_a_program_cannot_do_is_not_run() -> None:
    only_sends = program("sys.stdin.read()")
    report = ConformanceReport("x")
    some = [one for one in vectors.load("client") if "edit" in one.app or "history" in one.app]
    await ClientTrial(only_sends, report, lambda _: None).run(some)
    assert {case.verdict for case in report.cases} == {Verdict.NOT_RUN}
    assert "needs a client's program that can edit" in {case.reason for case in report.cases}
    assert not report.is_good


async def test_a_client_that_does_nothing_fails() -> None:
    report = ConformanceReport("x")
    (one, *_) = vectors.load("client")
    async with asyncio.timeout(20):
        await ClientTrial(program("sys.stdin.read()"), report, lambda _: None, wait_s=0.2).run([one])
    assert [case.verdict for case in report.cases] == [Verdict.FAILED]
