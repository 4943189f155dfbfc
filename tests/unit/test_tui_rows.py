"""The open conversation as lines: what stands where, and that it fits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from chatd.client import Entry, Page, Receipt, Sent
from chatd.tui.model import ConversationView, Model
from chatd.tui.rows import RowMaker, clock, day_of, day_text, found, keys_of, last_seen, pattern

NOON = 1_790_078_400_000  # 22 September 2026, 12:00 UTC
DAY = 86_400_000


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def model_with(*bodies: tuple[str, str | None], apart_ms: int = 60_000) -> tuple[Model, ConversationView]:
    """A conversation of (who, body)."""
    model = Model()
    model.user = "me"
    entries = [
        Entry("12", "bob", n, NOON + n * apart_ms, who == "me", "message", body)
        for n, (who, body) in enumerate(bodies, 1)
    ]
    model.page("bob", Page("12", tuple(entries), False, len(entries), 1))
    return model, model.open("bob")


def lines(it: ConversationView, width: int = 40) -> list[str]:
    return [row.text.plain.rstrip() for row in RowMaker().rows(it, width)]


def test_a_conversation_reads_from_top_to_bottom() -> None:
    _, it = model_with(("bob", "hi there"), ("bob", "are you in"), ("me", "yes"), ("bob", None))
    assert lines(it, 34) == [
        "─── Tuesday 22 September 2026 ────",
        "bob",
        "12:01     hi there",
        "12:02     are you in",
        "you",
        "12:03 ✓   yes",
        "bob",
        "12:04     (deleted)",
    ]


def test_each_day_has_its_line() -> None:
    _, it = model_with(("bob", "a"), ("bob", "b"), apart_ms=DAY)
    assert [line.strip("─ ") for line in lines(it) if "─" in line] == [
        "Wednesday 23 September 2026",
        "Thursday 24 September 2026",
    ]


def test_a_sign_tells_how_far_an_own_message_has_got() -> None:
    model, it = model_with(("me", "read"), ("me", "delivered"), ("me", "sent"))
    model.event(Receipt("12", "bob", "bob", 2, 1), 0)
    going = model.going("bob", "message", "sending", None, NOON)
    failed = model.going("bob", "edit", "late", 1, NOON)
    failed.failed = "too_late: the time to edit it is over"
    shown = lines(it, 100)
    assert shown[2:6] == ["12:01 ✓✓✓ read", "12:02 ✓✓  delivered", "12:03 ✓   sent", "12:00 ..  sending"]
    assert shown[6] == "12:00 !!  edit: late"
    assert "too_late" in shown[7]
    assert "r tries again, x gives it up" in shown[7]
    model.sent(going, Sent("12", 4, NOON))
    assert "12:00 ✓   sending" in lines(it, 80)


def test_lines_of_a_message_stand_below_each_other_and_fit() -> None:
    _, it = model_with(("bob", "one\n\ntwo words and more of them 日本語日本語日本語"), ("bob", "x" * 50))
    shown = lines(it, 30)
    assert shown[2:5] == ["12:01     one", "", "          two words and more"]
    assert max(cell_len(line) for line in shown) <= 30


def test_what_is_found_is_found_in_what_is_shown() -> None:
    model, it = model_with(("bob", "Hello [World]"), ("me", "hello again"), ("bob", None))
    model.going("bob", "message", "HELLO", None, NOON)
    wanted = pattern(" hello ")
    assert wanted is not None
    assert found(it, wanted) == [("message", 1), ("message", 2), ("outgoing", 1)]
    rows = RowMaker().rows(it, 40, wanted)
    assert [row.text.plain for row in rows if any(span.style == "reverse" for span in row.text.spans)] == [
        "12:01     Hello [World]",
        "12:02 ✓   hello again",
        "12:00 ..  HELLO",
    ]
    assert pattern("  ") is None
    brackets = pattern("[world]")
    assert brackets is not None
    assert found(it, brackets) == [("message", 1)]


def test_the_first_unread_message_has_a_line_above() -> None:
    _, it = model_with(("bob", "old"), ("bob", "new"), ("bob", "newer"))
    it.mark = 1
    assert [line.strip("─ ") for line in lines(it)][2:6] == ["12:01     old", "new", "bob", "12:02     new"]


def test_a_log_without_anything_says_so_and_one_with_more_says_that() -> None:
    model = Model()
    it = model.open("zed")
    assert lines(it) == []
    model.nothing_there("zed")
    assert lines(it) == ["nothing has been written here yet"]
    _, it = model_with(("bob", "hi"))
    it.floor, it.lowest = 1, 9
    assert "older messages" in lines(it, 60)[0]


def test_rows_of_what_has_not_changed_are_kept() -> None:
    model, it = model_with(("bob", "a"), ("me", "b"))
    maker = RowMaker()
    before = {row.key: row for row in maker.rows(it, 40)}
    model.event(Receipt("12", "bob", "bob", 2, 2), 0)
    after = {row.key: row for row in maker.rows(it, 40)}
    assert before["message", 1] is after["message", 1]
    assert before["message", 2] is not after["message", 2]
    assert list(keys_of(maker.rows(it, 40))) == [("message", 1), ("message", 2)]


@given(st.lists(st.text(max_size=200), min_size=1, max_size=5), st.integers(20, 60))
@settings(max_examples=60)
def test_no_line_is_wider_than_the_screen_or_has_a_control_character(bodies: list[str], width: int) -> None:
    _, it = model_with(*(("bob", body) for body in bodies))
    for row in RowMaker().rows(it, width):
        assert cell_len(row.text.plain.rstrip()) <= width
        assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in row.text.plain)


@pytest.mark.parametrize("ts", [10**18, -(10**18), 2**70])
def test_a_time_that_is_none_is_no_error(ts: int) -> None:
    assert clock(ts) == "--:--"
    assert day_text(day_of(ts)) == "at an unknown time"
    assert last_seen(ts, date(2026, 9, 22)) == ""


def test_last_seen_is_as_short_as_it_is_clear() -> None:
    assert last_seen(NOON, date(2026, 9, 22)) == "last seen 12:00"
    assert last_seen(NOON, date(2026, 9, 23)) == "last seen 22 Sep 2026 12:00"
    assert last_seen(None, date(2026, 9, 23)) == ""
