"""Which texts may become a user id: the rule of docs/protocol.md section 2, by the tables of one version of Unicode. Pure.

Python's own tables are of another version in each release of Python, so nodes would disagree about one id, and refuse what is newer than they are.
The tables here are those of two libraries, pinned in setup.cfg: `unicodedata2` (category, combining class, NFC, names), whose version is Unicode's,
and `idna` (Joining_Type). `UNICODE` names that version; a test holds that both libraries have it, so an upgrade is a deliberate step.

    user_id (ids.py)    what may name somebody who is known: length, no controls. For whatever is looked up.
    new_user_id         what may become a name: a hello of somebody who never was here, the first message to somebody.

Only names that come in new are judged by Unicode, so no upgrade of the tables, or of this rule, shuts out a user whom the database knows.
Rejected: `regex`, which has all properties, but neither NFC nor its own Unicode version, and costs 27 ms at start; PRECIS (RFC 8264), which
allows U+2800 and goes by Python's tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeAlias

import unicodedata2
from idna import idnadata
from idna.intranges import intranges_contain

from chatd.ids import UserId, user_id

UNICODE: Final = "18.0.0"

_Classes: TypeAlias = Callable[[str], str]

ZWNJ: Final = "\u200c"
ZWJ: Final = "\u200d"

# Default_Ignorable_Code_Point, those of categories L, M, N, P and S: renderers show nothing for them. The others are Cf or Cn, refused as such.
# Variation selectors are among them: "\u2764\ufe0f" and "\u2764" would be two ids that look alike in many fonts.
_IGNORABLE: Final = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
# Letters, marks and symbols whose glyph is empty by the code charts. Unicode has no property for them.
# Braille pattern blank, Egyptian full and half blank, Khitan filler, musical null notehead.
_BLANK: Final = "\u2800\U00013441\U00013442\U00016fe4\U0001d159"
_UNSEEN: Final = re.compile(f"[{_IGNORABLE}{_BLANK}]")


def new_user_id(text: str) -> UserId:
    """Check a text that is to become a user id: 1-64 visible characters in NFC, with inner spaces at most.

    Raises ValueError with a sentence that says what is wrong.
    """
    id = user_id(text)
    if text.isascii():
        return id  # without controls, what is left of ASCII is visible and in NFC
    for at, char in enumerate(text):
        if unicodedata2.category(char)[0] not in "LMNPS" and char != " " and not _is_joiner(text, at):
            raise ValueError(f"a user id has visible characters of Unicode {UNICODE} only, and U+{ord(char):04X} is none here")
    if (unseen := _UNSEEN.search(text)) is not None:
        raise ValueError(f"a user id has visible characters only, and nothing is seen of U+{ord(unseen[0]):04X}")
    if unicodedata2.normalize("NFC", text) != text:
        raise ValueError("a user id is in Unicode's normal form NFC")
    return id


# ---- joiners: UTS #39 section 3.1.1, limited contexts for joining controls --------------------------------------------------------------
#
#   A1  /$LJ $T* ZWNJ $T* $RJ/               a cursive connection is broken: Persian
#   A2  /$L $M* $V $M1* ZWNJ $M1* $L/        a conjunct is broken
#   B   /$L $M* $V $M1* ZWJ $M1* (?!$D)/     a half form is asked for: Sinhala, Malayalam
#
# each within one script. The patterns stand below over one letter a character, as `_joining` and `_conjunct` give them.
# $D (Indic_Syllabic_Category=Vowel_Dependent) and the script are in neither library. In place of $D: no mark, and no letter named as a vowel.
# In place of the script: the first word of the name, which Unicode never changes.

_LEFT_OF_BREAK: Final = re.compile(r"[DL]T*\Z")
_RIGHT_OF_BREAK: Final = re.compile(r"T*[DR]")
_VIRAMA: Final = re.compile(r"l[vnm]*[vw][vn]*\Z")
_LETTER: Final = re.compile(r"[vn]*l")
_NO_VOWEL: Final = re.compile(r"[vn]*(?:[lx]|\Z)")
_VOWEL: Final = re.compile(r"VOWEL|SARA|LAKKHANGYAO")  # of letters with that property; the test against `regex` holds them to be all
_VIRAMA_CLASS: Final = 9  # Canonical_Combining_Class=Virama


def _is_joiner(text: str, at: int) -> bool:
    """Is there a joiner that may stand there?"""
    before, joiner, after = text[:at], text[at], text[at + 1 :]
    if joiner == ZWNJ:
        return _meets(before, after, _joining, _LEFT_OF_BREAK, _RIGHT_OF_BREAK) or _meets(before, after, _conjunct, _VIRAMA, _LETTER)
    return joiner == ZWJ and _asks_half_form(before, after)


def _meets(before: str, after: str, classes: _Classes, left: re.Pattern[str], right: re.Pattern[str]) -> bool:
    a, b = left.search(classes(before)), right.match(classes(after))
    return a is not None and b is not None and _is_one_script(before[a.start() :] + after[: b.end()])


def _asks_half_form(before: str, after: str) -> bool:
    a, b = _VIRAMA.search(_conjunct(before)), _NO_VOWEL.match(_conjunct(after))
    if a is None or b is None or not _is_one_script(before[a.start() :]):
        return False
    return not after or _VOWEL.search(unicodedata2.name(after[b.end() - 1], "")) is None


def _joining(text: str) -> str:
    """A character as one letter: its Joining_Type, "U" where it does not join."""
    return "".join(next((kind for kind in "DLRT" if intranges_contain(ord(char), idnadata.joining_types[kind])), "U") for char in text)


def _conjunct(text: str) -> str:
    """A character as one letter.

    l: letter. v, w: virama, nonspacing and spacing. n: nonspacing mark of another class; m: of class 0. c: other mark. x: all else.
    """
    return "".join(map(_conjunct_class, text))


def _conjunct_class(char: str) -> str:
    category, combining = unicodedata2.category(char), unicodedata2.combining(char)
    if category != "Mn":
        return "w" if combining == _VIRAMA_CLASS else {"L": "l", "M": "c"}.get(category[0], "x")
    return "v" if combining == _VIRAMA_CLASS else "n" if combining else "m"


def _is_one_script(text: str) -> bool:
    """Marks of all scripts (COMBINING ...) are of any."""
    return len({unicodedata2.name(char, "").partition(" ")[0] for char in text} - {"COMBINING"}) <= 1
