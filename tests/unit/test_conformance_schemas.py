"""Frames are held to the schemas of the protocol, and a wrong one is seen."""

from __future__ import annotations

import sys
from typing import Final

import pytest

from chatd.conformance.report import Verdict
from chatd.conformance.schemas import FrameChecks

OK: Final[dict[str, object]] = {"t": "ok", "id": 7, "c": "12", "seq": 64, "ts": 1790000001000}


def verdict(*frames: tuple[str, dict[str, object]], name: str = "ok_send") -> tuple[Verdict, str]:
    checks = FrameChecks()
    for schema, frame in frames:
        checks.judge(schema, frame, "here")
    (case,) = [case for case in checks.cases() if f"`{name}`" in case.name]
    return case.verdict, case.reason


def test_a_schema_passes_by_frames_that_fit_and_by_nothing_else() -> None:
    assert verdict(("ok_send", OK)) == (Verdict.PASSED, "")
    assert verdict(("ok_send", {**OK, "later": 1}))[0] is Verdict.PASSED, "a later server may send more keys"
    assert verdict()[0] is Verdict.NOT_RUN
    assert verdict(("ok", OK))[0] is Verdict.NOT_RUN


@pytest.mark.parametrize("wrong", [{"seq": 0}, {"c": 12}, {"c": ""}, {"dup": False}, {"ts": 1.5}, {"t": "okay"}])
def test_a_wrong_frame_is_seen(wrong: dict[str, object]) -> None:
    got, reason = verdict(("ok_send", OK), ("ok_send", {**OK, **wrong}))
    assert got is Verdict.FAILED
    assert "here" in reason


def test_a_pattern_ends_where_the_text_does() -> None:
    """Python's `$` would take a newline behind it."""
    err: dict[str, object] = {"t": "err", "id": 1, "code": "bad_id\n", "msg": "x"}
    assert verdict(("err", err), name="err")[0] is Verdict.FAILED


def test_a_frame_of_no_type_of_the_protocol_is_seen() -> None:
    assert verdict(("surprise", {"t": "surprise"}), name="surprise")[0] is Verdict.FAILED


def test_without_jsonschema_nothing_is_called_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    got, reason = verdict(("ok_send", OK))
    assert got is Verdict.NOT_RUN
    assert "pip install" in reason
