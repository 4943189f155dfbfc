"""User ids: what is one, and what is not."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.ids import USER_CHARS_MAX, user_id


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "alice",
        "x" * USER_CHARS_MAX,
        "😀" * USER_CHARS_MAX,
        "Zoë",
        "alice smith",
        "'; DROP TABLE users; --",
        "<script>alert(1)</script>",
        "../..",
        "null",
    ],
)
def test_any_printable_text_is_a_user_id_as_it_stands(text: str) -> None:
    assert user_id(text) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "1 to 64"),
        ("x" * (USER_CHARS_MAX + 1), "1 to 64"),
        ("a\x00b", "printable"),
        ("a\nb", "printable"),
        ("a\x7f", "printable"),
        ("a\u0085", "printable"),
        ("a\u200b", "printable"),  # zero width space
        ("a\u202eb", "printable"),  # right-to-left override
        ("a\ud800", "printable"),
        ("a\u00a0b", "printable"),  # a space that is none
        (" a", "spaces"),
        ("a ", "spaces"),
        ("Zoe\u0308", "NFC"),
        ("\u212b", "NFC"),  # the Angstrom sign: NFC has another letter for it
    ],
)
def test_what_is_no_user_id_is_told_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        user_id(text)


@given(st.one_of(st.text(max_size=70), st.text("aZ é\u0301\u200b😀\t", max_size=70)))
def test_two_ids_that_look_alike_by_normal_form_are_never_both_taken(text: str) -> None:
    try:
        taken = user_id(text)
    except ValueError:
        return
    assert 1 <= len(taken) <= USER_CHARS_MAX
    assert taken.isprintable()
    assert taken == taken.strip() == unicodedata.normalize("NFC", taken)
    taken.encode()
