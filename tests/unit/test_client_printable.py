"""Nothing that somebody wrote is obeyed by the terminal it is shown on."""

from __future__ import annotations

import ast
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.client.printable import escaped

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


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
