"""A mark is read back as it was made, and is void in another log; any text may come from a client."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.postgres import mark
from chatd.postgres.mark import CHARS_MAX, Mark, made, of_all, read

IDS = st.integers(0, 2**63 - 1)


@given(IDS, IDS, st.text("0123456789abcdef", min_size=8, max_size=40))
def test_it_is_read_back_as_it_was_made(xid: int, started: int, epoch: str) -> None:
    text = str(made(xid, started, epoch))
    assert len(text) <= CHARS_MAX
    assert read(text, epoch) == Mark(xid, started, epoch[: mark.LOG_CHARS])


def test_in_another_log_it_is_void() -> None:
    assert read(str(made(1, 2, "aaaaaaaa-1")), "bbbbbbbb-1") is None
    assert read(str(made(1, 2, "aaaaaaaa-1")), "aaaaaaaa-2") is not None, "by the first characters alone"


@pytest.mark.parametrize(
    "text", [None, "", "1.2", "1.2.e.", "x.2.e", "1.-2.e", f"{2**63:x}.2.e", f"1.{2**63:x}.e", "0" * 60 + ".1.e"]
)
def test_what_is_no_mark_is_none(text: str | None) -> None:
    assert read(text, "e") is None


@given(st.text())
def test_no_text_raises(text: str) -> None:
    read(text, "e")
    read(f"{text}.{text}.e", "e")


def test_the_mark_of_all_is_older_than_any() -> None:
    assert of_all("epoch-1") == read("0.0.epoch-1", "epoch-1")
