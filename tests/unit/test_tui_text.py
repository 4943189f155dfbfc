"""Text from the wire on a terminal: nothing in it is obeyed, and it stays in its cells."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from chatd.tui.text import COMBINING_MAX, FSI, PDI, fitted, inert, isolated, one_for_one, size_of

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
NASTY = st.one_of(
    st.text(),
    st.text(alphabet=BIDI + "ab\u05d0\u200d\x1b\x9b\x07\r\n\t\u2028[]"),
    st.text(alphabet="a \u0301\u0489\u0ccc\u1161\u200d\ufe0f\n"),
)


@pytest.mark.parametrize(("text", "shown"), [
    ("hi [bold]there[/]", "hi [bold]there[/]"),
    ("\x1b[31mred", "␛[31mred"),
    ("\x9b31m\x07\x7f", r"\x9b31m␇␡"),
    ("a\r\nb\rc\nd", "a␊b␍c␊d"),
    ("a\tb", "a    b"),
    ("\u202ecod.exe", r"\u202ecod.exe"),
    ("\u2066x\u2069", r"\u2066x\u2069"),
    ("a\u200bb\ufeff\u00ad\u200e", "ab"),
    ("tag\U000e0041\U000e0042", "tag"),
    ("\u0301a", "◌\u0301a"),
    (" \u0301", " ◌\u0301"),
    ("a" + "\u0301" * 99 + "b", "a" + "\u0301" * COMBINING_MAX + "b"),
    ("a" + "\u1161" * 99, "a" + "\u1161" * COMBINING_MAX),
    ("\u200d\u200da", "a"),
    ("👩\u200d💻 ❤\ufe0f", "👩\u200d💻 ❤\ufe0f"),
    ("\ud800", r"\ud800"),
    ("\uffff\ufdd0", r"\uffff\ufdd0"),
])  # fmt: skip
def test_text_is_shown_as_text(text: str, shown: str) -> None:
    assert inert(text) == shown


def test_ends_of_lines_stay_where_lines_are_shown() -> None:
    assert inert("a\r\nb\u2028c\n\u0301d", lines=True) == "a\nb\nc\n◌\u0301d"


def check(shown: str) -> None:
    """Nothing to obey, and no pile of marks."""
    run = 0
    for c in shown:
        assert c == "\n" or unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp")
        assert c in "\u200c\u200d" or unicodedata.category(c) != "Cf"
        run = run + 1 if c != "\n" and (c in "\u200c\u200d" or cell_len(c) == 0) else 0
        assert run <= COMBINING_MAX


@given(NASTY)
def test_no_control_no_bidi_control_and_no_pile_of_marks_is_left(text: str) -> None:
    shown = inert(text, lines=True)
    check(shown)
    assert inert(shown, lines=True) == shown, "it is done once"
    assert "\n" not in inert(text)


@pytest.mark.parametrize("text", ["\x1b", "\x9b", "\u202e", "\u2028", "a" + "\u0301" * 5, "a" + "\u1161" * 5])
def test_the_check_finds_what_is_not_inert(text: str) -> None:
    with pytest.raises(AssertionError):
        check(text)


@given(NASTY)
def test_a_text_in_the_composer_keeps_its_length_and_obeys_nothing(text: str) -> None:
    shown = one_for_one(text)
    assert len(shown) == len(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in shown.replace("\t", ""))
    assert not any(c in BIDI for c in shown)
    assert "\u0301" * (COMBINING_MAX + 1) not in shown


def test_the_direction_of_a_text_ends_with_it() -> None:
    assert isolated("hello é 日本") == "hello é 日本"
    assert isolated("שלום") == f"{FSI}שלום{PDI}"
    assert isolated("abc مرحبا") == f"{FSI}abc مرحبا{PDI}"


@given(st.text(), st.integers(0, 12))
def test_what_does_not_fit_is_cut_at_a_cell(text: str, width: int) -> None:
    shown = inert(text)
    assert cell_len(fitted(shown, width)) <= width or cell_len(shown) == 0
    if cell_len(shown) <= width:
        assert fitted(shown, width) == shown


def test_the_size_is_that_of_utf_8() -> None:
    assert [size_of(text) for text in ("", "a", "é", "日", "😀", "a\nb")] == [0, 1, 2, 3, 4, 3]
