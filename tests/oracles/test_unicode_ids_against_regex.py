"""The rule of user ids against one written with the properties of `regex`, over all of Unicode.

The oracle is the text of docs/protocol.md section 2 as patterns: other tables than ours, slow. Ours
is narrower than UTS #39 in two ways, told apart here: what follows a ZWJ is no mark at all, and no
letter named as a vowel; the script is the first word of the name.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import pytest
import regex
import unicodedata2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatd import unicode_ids
from chatd.unicode_ids import ZWJ, ZWNJ, new_user_id

# Elsewhere are ideographs, private and unassigned characters
PLANES_0_1_14 = [*range(0x20000), *range(0xE0000, 0xE1000)]
VISIBLE = regex.compile(
    r"[[\p{L}\p{M}\p{N}\p{P}\p{S}]--[\p{Default_Ignorable_Code_Point}\u2800\U00013441\U00013442\U00016fe4\U0001d159]]",
    regex.V1,
)
DUAL_OR_LEFT, DUAL_OR_RIGHT = r"[\p{jt=D}\p{jt=L}]", r"[\p{jt=D}\p{jt=R}]"
LETTER_VIRAMA = r"\p{L}\p{Mn}*\p{ccc=9}[\p{Mn}&&\P{ccc=0}]*"
A1 = (rf"{DUAL_OR_LEFT}\p{{jt=T}}*$", rf"^\p{{jt=T}}*{DUAL_OR_RIGHT}")
A2 = (rf"{LETTER_VIRAMA}$", r"^[\p{Mn}&&\P{ccc=0}]*\p{L}")
B = (rf"{LETTER_VIRAMA}$", r"^[\p{Mn}&&\P{ccc=0}]*(?!\p{InSC=Vowel_Dependent})")


def taken(text: str) -> bool:
    try:
        new_user_id(text)
    except ValueError:
        return False
    return True


def found(contexts: tuple[str, str], before: str, after: str) -> bool:
    """UTS #39 without its demand of a single script."""
    left, right = contexts
    return bool(regex.search(left, before, regex.V1)) and bool(regex.search(right, after, regex.V1))


def allowed(text: str) -> bool:
    return all(
        found(A1, text[:at], text[at + 1 :]) or found(A2, text[:at], text[at + 1 :])
        if char == ZWNJ
        else found(B, text[:at], text[at + 1 :])
        for at, char in enumerate(text)
        if char in ZWNJ + ZWJ
    )


@cache
def visible() -> frozenset[str]:
    """All of Unicode that `VISIBLE` matches."""
    return frozenset(VISIBLE.findall("".join(map(chr, range(0x110000)))))


def expected(text: str) -> bool:
    """Of a text without joiners."""
    in_shape = 1 <= len(text) <= 64 and text == text.strip(" ")
    return (
        in_shape
        and all(char == " " or char in visible() for char in text)
        and unicodedata2.normalize("NFC", text) == text
    )


def judged_otherwise(points: Iterable[int], *shapes: str) -> list[str]:
    """The texts, a character in each shape, where we and the oracle differ."""
    texts = (shape.format(chr(n)) for n in points for shape in shapes)
    return [ascii(text) for text in texts if taken(text) != expected(text)]


def test_regex_knows_the_same_unicode() -> None:
    """Else what follows would compare versions."""
    every = "".join(map(chr, range(0x110000)))
    assert set(regex.findall(r"\P{Cn}", every)) == {c for c in every if unicodedata2.category(c) != "Cn"}


def test_each_code_point_is_judged_by_the_rule() -> None:
    assert judged_otherwise(PLANES_0_1_14, "{}", "a{}b") == []


@pytest.mark.slow
def test_each_code_point_of_the_other_planes_is_judged_by_the_rule() -> None:
    """Between letters alone: no mark, space or joiner is among them, for which it matters where they stand."""
    assert judged_otherwise(sorted(set(range(0x110000)) - set(PLANES_0_1_14)), "a{}b") == []


# What may stand beside a joiner: all that joins, all of scripts with a virama, all vowels, and some
# of the rest.
BESIDE = regex.compile(
    r"[\p{jt=D}\p{jt=L}\p{jt=R}\p{jt=T}\p{ccc=9}\p{M}\p{InSC=Vowel_Dependent}\u0020-\u06ff\u0900-\u0dff]", regex.V1
)
CHARS = [chr(n) for n in PLANES_0_1_14 if BESIDE.match(chr(n)) and taken(chr(n))]


@pytest.mark.parametrize("joiner", [ZWNJ, ZWJ], ids=["ZWNJ", "ZWJ"])
@pytest.mark.parametrize(
    "form", ["\u0628{}{}", "{1}{0}\u0628", "{1}{0}\u0937", "\u0915\u094d{}{}", "\u0e01\u0e3a{}{}"], ids=ascii
)
def test_no_character_beside_a_joiner_is_taken_that_uts_39_does_not_allow(joiner: str, form: str) -> None:
    texts = [form.format(joiner, c) for c in CHARS]
    assert [ascii(text) for text in texts if taken(text) and not allowed(text)] == []


SCRIPTS = [
    "Arabic",
    "Syriac",
    "Nko",
    "Mandaic",
    "Mongolian",
    "Phags_Pa",
    "Adlam",
    "Devanagari",
    "Sinhala",
    "Malayalam",
    "Khmer",
    "Tibetan",
    "Brahmi",
]


@pytest.mark.parametrize("joiner", [ZWNJ, ZWJ], ids=["ZWNJ", "ZWJ"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_between_letters_of_a_script_joiners_are_judged_as_uts_39_does(joiner: str, script: str) -> None:
    of_script = [c for c in CHARS if regex.match(rf"\p{{sc={script}}}", c)]
    letters = [c for c in of_script if regex.match(r"\p{L}", c) and not unicode_ids._VOWEL.search(unicodedata2.name(c))]
    virama = next((c for c in of_script if unicodedata2.combining(c) == 9), "")
    one = next((c for c in letters if regex.match(DUAL_OR_LEFT, c)), letters[0]) if letters else "\u0915"
    texts = [f"{one}{virama}{joiner}{c}" for c in letters]
    texts = [text for text in texts if unicodedata2.normalize("NFC", text) == text]
    assert [ascii(text) for text in texts if taken(text) != allowed(text)] == []


ALPHABET = (
    "ab \u0628\u062f\u064e\u0712\u0301\u0915\u0937\u094d\u093c\u093e\u0902"
    "\u0d9a\u0dca\u0d28\u0d4d\u0e01\u0e3a\u0e30\u1a20\u1a60\uaab0\u0bcd\u0e45\u200c\u200d"
)


@settings(max_examples=2000, deadline=None)
@given(st.text(ALPHABET, min_size=1, max_size=9))
@example("\u0e01\u0e3a\u200d\u0e30")
@example("\u0915\u094d\u0301\u094d\u200d\u0915")
def test_no_joiner_stands_where_uts_39_allows_none(text: str) -> None:
    if taken(text):
        assert allowed(text)
        assert expected(text.replace(ZWNJ, "").replace(ZWJ, "")) or unicodedata2.normalize("NFC", text) == text
