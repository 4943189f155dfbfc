"""The random walks of the conformance kit for clients: good ones pass, and a client with one fault does not.

The fault is put into the client in Perl, by another text at one place.
"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
from pathlib import Path
from typing import Final

import pytest

from chatd.conformance import client_walk
from chatd.conformance.adapter import Adapter
from chatd.conformance.against_rules import Walks
from chatd.conformance.client_vectors import Subject
from chatd.conformance.client_walk import ClientWalk
from chatd.conformance.report import Verdict
from chatd.conformance.values import Mismatch
from tests.wire.test_adapter import PYTHON, ROOT, program, walked
from tests.wire.test_client_vectors import SUBJECTS

PERL: Final = ROOT / "clients" / "adapters" / "client.pl"
STEPS: Final = 60
SEEDS: Final = range(6)  # one of them must meet the fault
FAULT_WAIT_S: Final = 0.5  # for what a fault keeps away
FAULT_BACK_S: Final = 3.0

needs_perl = pytest.mark.skipif(shutil.which("perl") is None, reason="perl is not on this machine")


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
async def test_both_clients_in_python_pass(subject: type[Subject]) -> None:
    walks = [ClientWalk(subject(), random.Random(f"1/{seed}"), STEPS) for seed in SEEDS]
    await asyncio.gather(*(walk.run() for walk in walks))
    assert sum(walk.checks["repeats"] for walk in walks) > 0, "an answer was lost"
    assert min(walk.checks["entries shown"] for walk in walks) > STEPS / 2


async def test_the_python_sdk_behind_its_adapter_passes() -> None:
    report = await walked(PYTHON, Walks(count=2))
    assert [case for case in report.cases if case.verdict is not Verdict.PASSED] == []
    assert report.notes["seed of the walks"] == "1"
    assert "outcomes" in report.notes["judged in the walks"]


@needs_perl
async def test_the_client_in_perl_passes() -> None:
    report = await walked(f"perl {PERL}", Walks(count=4))
    assert [case for case in report.cases if case.verdict is not Verdict.PASSED] == []


async def _reason(command: str, seed: int) -> str:
    """Why a walk fails, or nothing."""
    try:
        async with Adapter(command) as adapter:
            walk = ClientWalk(adapter, random.Random(f"1/{seed}"), STEPS, FAULT_WAIT_S)
            await adapter.unless_failed(walk.run())
    except Mismatch as e:
        return str(e)
    return ""


FAULTS: Final = {
    "a new cid for each try": (
        "post({ %{ $one->{keys} }, $one->{tried}",
        "post({ %{ $one->{keys} }, cid => fresh_cid(), $one->{tried}",
        "each send",
    ),
    "a repeat does not say so": ("$one->{tried} ? (retry => $TRUE) : ()", "()", "says retry"),
    "what was on its way is forgotten with the line": (
        "$_->{tried} ||= $_->{sent}, $_->{sent} = 0 for",
        "$_->{tried} ||= $_->{sent} for",
        "each send has an outcome",
    ),
    "retry_ms is ignored": ("$send_at = $at if $send_at < $at;", "", "waits its retry_ms"),
    "what is on its way may be overtaken": (
        "next if $refused{$to} and grep { $_->{sent} } @$queue;",
        "",
        "in the order of the calls",
    ),
    "what comes again is shown again": ("return if $seq <= $held{$c};", "", "each entry once"),
    "what was missed is not fetched": (
        "fetch($c) if $item->{page} or",
        "fetch($c) if",
        "each entry once|each send has an outcome|comes back",
    ),
    "a later text in the place of an earlier one": (
        "say_line({ %$entry, event => 'entry', c => $c });",
        "say_line({ %$entry, event => 'entry', c => $c, body => 'own 1' });",
        "entries are as they were sent",
    ),
    "own messages take no place": (
        "entry($answer->{c}, \\%entry);",
        "say_line({ %entry, event => 'entry', c => $answer->{c} });",
        "each entry once|each send has an outcome|comes back",
    ),
    "another cid is given up": (
        "post({ t => 'skip', to => $keys->{to}, cid => $answer->{cid} })",
        "1",
        "each send has an outcome",
    ),
    "every second message goes first": (
        "for my $one (grep { !$_->{sent} } @$queue)",
        "for my $one (reverse grep { !$_->{sent} } @$queue)",
        "in the order of the calls",
    ),
    "it says the wrong place": (
        "{ event => 'done', seq => $answer->{seq} }",
        "{ event => 'done', seq => $answer->{seq} + 1 }",
        "true outcome",
    ),
    "an outcome comes twice": (
        "say_line({ %$outcome, n => $one->{n} });",
        "say_line({ %$outcome, n => $one->{n} }) for 1, 2;",
        "one outcome",
    ),
    "it gives up": ("1002, 1003, 1007", "1002, 1003, 1012, 1011, 4006, 4007, 1007", "gives up"),
}


@pytest.mark.slow
@needs_perl
@pytest.mark.parametrize(("old", "new", "rule"), FAULTS.values(), ids=FAULTS)
async def test_a_client_with_a_fault_is_caught(
    old: str, new: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_walk, "BACK_S", FAULT_BACK_S)
    text = PERL.read_text()
    assert old in text
    (tmp_path / "client.pl").write_text(text.replace(old, new))
    walks = [asyncio.create_task(_reason(f"perl {tmp_path / 'client.pl'}", seed)) for seed in SEEDS]
    reasons: list[str] = []
    try:
        for walk in asyncio.as_completed(walks):
            reasons.append(await walk)
            if re.search(rule, reasons[-1]):
                return  # the other walks need not go on
    finally:
        for one in walks:
            one.cancel()
        await asyncio.gather(*walks, return_exceptions=True)
    raise AssertionError(reasons)


async def test_a_client_that_cannot_send_is_not_walked_with() -> None:
    silent = program("sys.stdin.read()").replace("send", "read")
    report = await walked(silent, Walks(count=1))
    assert [(case.verdict, case.reason) for case in report.cases] == [
        (Verdict.NOT_RUN, "needs a client's program that can send")
    ]
