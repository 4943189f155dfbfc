"""The lines of `chatd tail`: nothing that somebody wrote is obeyed by the terminal it is shown on."""

from __future__ import annotations

import ast
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.client.frames import Entry
from chatd.client.tail import escaped, line
from chatd.client.values import Kind

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def entry(
    kind: Kind = "message",
    body: str | None = "hi",
    *,
    own: bool = False,
    ref: int | None = None,
    peer: str = "bob",
    ts: int = 0,
) -> Entry:
    return Entry("12", peer, 61, ts, own, kind, body, ref)


@pytest.mark.parametrize(("text", "shown"), [
    ("hi", "hi"),
    ("\x1b[31m", r"\x1b[31m"),
    ("a\nb\tc", r"a\nb\tc"),
    ("\\n", r"\\n"),
    ("\x9b\x07\r\x7f", r"\x9b\x07\r".replace(r"\r", r"\x0d") + r"\x7f"),
    ("\u202ecod.exe", r"\u202ecod.exe"),
    ("\U000e0041", r"\U000e0041"),
    ("é 😀 日本 ‏", "é 😀 日本 " + r"\u200f"),
])  # fmt: skip
def test_text_is_shown_as_text(text: str, shown: str) -> None:
    assert escaped(text) == shown


@given(
    st.one_of(
        st.text(),
        st.text(alphabet=st.characters(categories=["Cc", "Cf", "Zl", "Zp"])),
        st.text(alphabet=BIDI + "ab\\\x1b"),
    )
)
def test_no_control_and_no_format_character_is_left_and_nothing_is_lost(text: str) -> None:
    shown = escaped(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown)
    assert "\n" not in shown
    quoted = shown.replace("'", r"\'")
    assert ast.literal_eval(f"'{quoted}'") == text, "the escapes are Python's, so the text can be had back"


@pytest.mark.parametrize(("one", "end"), [
    (entry(), "bob > hi"),
    (entry(own=True), "bob < hi"),
    (entry("edit", "hi!", ref=61), "bob > [edits 61] hi!"),
    (entry("delete", None, ref=61), "bob > [deletes 61]"),
    (entry(body=None), "bob > [deleted]"),
    (entry(peer="b\u202eob"), r"b\u202eob > hi"),
    (entry(ts=10**30), f"{10**30} bob > hi"),
    (entry(ts=-(10**16)), "bob > hi"),
])  # fmt: skip
def test_an_entry_is_one_line(one: Entry, end: str) -> None:
    assert line(one).endswith(end)
    assert "\n" not in line(one)
