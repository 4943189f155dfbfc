"""What may name a user who is known. What may become a name: test_unicode_ids.py."""

from __future__ import annotations

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
        "\u2764\ufe0f",  # what earlier rules took names somebody still
        "\u3164",
        "Zoe\u0308",
        "a\u0378",
    ],
)
def test_any_text_names_somebody_as_it_stands(text: str) -> None:
    assert user_id(text) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "1 to 64"),
        ("x" * (USER_CHARS_MAX + 1), "1 to 64"),
        ("a\x00b", "control"),
        ("a\nb", "control"),
        ("a\x7f", "control"),
        ("a\u0085", "control"),
        ("a\ud800", "control"),
        (" a", "spaces"),
        ("a ", "spaces"),
        (" ", "spaces"),
    ],
)
def test_what_can_name_nobody_is_told_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        user_id(text)


@given(st.text(max_size=70))
def test_the_quick_way_past_the_pattern_changes_no_verdict(text: str) -> None:
    """`isprintable` goes by the tables of the Python that runs; the verdict must not."""
    allowed = (
        1 <= len(text) <= USER_CHARS_MAX
        and text.strip(" ") == text
        and not any(c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in text)
    )
    try:
        assert user_id(text) == text
        assert allowed
    except ValueError:
        assert not allowed
