"""Checks which texts may become a user id, by the tables of one version of Unicode. Pure.

The rule is docs/protocol.md section 2.

Each release of Python has tables of another Unicode version, so nodes would disagree about an id,
and refuse characters newer than their Python. The tables used here are those of two libraries,
pinned in setup.cfg: `unicodedata2` (category, combining class, NFC, names), whose version is that
of Unicode, and `idna` (Joining_Type). `UNICODE` names that version. A test checks that both
libraries have it, so an upgrade is a deliberate step.

    user_id (ids.py)  for lookups of a known user: length, no controls
    new_user_id       for new names: the first hello of a user, the first message to a user

Only new names are checked by Unicode, so no upgrade of the tables or of this rule shuts out a user
whom the database knows. Rejected: `regex`, which has all properties but neither NFC nor its own
Unicode version, and costs 27 ms at start. Rejected: PRECIS (RFC 8264), which allows U+2800 and uses
Python's tables.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import unicodedata2
from idna import idnadata

from chatd.ids import UserId, user_id

UNICODE: Final = "18.0.0"

_VISIBLE: Final = frozenset("LMNPS")  # general categories by their first letter

ZWNJ: Final = "\u200c"
ZWJ: Final = "\u200d"

# The Default_Ignorable_Code_Points of categories L, M, N, P and S: renderers show nothing for them.
# The others are Cf or Cn, which are refused by category. Variation selectors are among those below:
# "\u2764\ufe0f" and "\u2764" would be two ids that look alike in many fonts.
_IGNORABLE: Final = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
# Letters, marks and symbols with an empty glyph in the code charts; Unicode has no property for
# them: Braille pattern blank, Egyptian full and half blank, Khitan filler, musical null notehead.
_BLANK: Final = "\u2800\U00013441\U00013442\U00016fe4\U0001d159"
_UNSEEN: Final = re.compile(f"[{_IGNORABLE}{_BLANK}]")


def new_user_id(text: str) -> UserId:
    """Check a new user id: 1-64 visible characters in NFC, spaces only between them.

    Raises ValueError with a sentence that says what is wrong. A request may name 200 (`watch`): the
    worst name costs some 30 us, a usual one 6.
    """
    id = user_id(text)
    if text.isascii():
        return id  # ASCII without controls is visible and in NFC
    categories = "".join(map(unicodedata2.category, text))[::2]
    if not _VISIBLE.issuperset(categories):
        _check_unseen(text, categories)
    if (unseen := _UNSEEN.search(text)) is not None:
        raise ValueError(f"a user id has visible characters only, and nothing is seen of U+{ord(unseen[0]):04X}")
    if unicodedata2.normalize("NFC", text) != text:
        raise ValueError("a user id is in Unicode's normal form NFC")
    return id


def _check_unseen(text: str, categories: str) -> None:
    """Check the characters that are not visible: spaces, and joiners where they have a use.

    Raises ValueError.
    """
    contexts = None
    for at, category in enumerate(categories):
        if category in _VISIBLE or text[at] == " ":
            continue
        contexts = contexts or _Contexts(text)
        if not contexts.allow(at):
            raise ValueError(
                f"a user id has visible characters of Unicode {UNICODE} only, and U+{ord(text[at]):04X} is none here"
            )


# ---- joiners: UTS #39 section 3.1.1, limited contexts for joining controls -----------------------
#
#   A1  /$LJ $T* ZWNJ $T* $RJ/               a cursive connection is broken: Persian
#   A2  /$L $M* $V $M1* ZWNJ $M1* $L/        a conjunct is broken
#   B   /$L $M* $V $M1* ZWJ $M1* (?!$D)/     a half form is asked for: Sinhala, Malayalam
#
# each within one script. The patterns below are over one letter per character, as `_Contexts` makes
# them. Neither library has $D (Indic_Syllabic_Category=Vowel_Dependent) or the script. In place of
# $D: no mark, and no letter with a vowel's name. In place of the script: the first word of the
# name, which Unicode never changes.

_LEFT_OF_BREAK: Final = re.compile(r"[DL]T*\Z")
_RIGHT_OF_BREAK: Final = re.compile(r"T*[DR]")
_VIRAMA: Final = re.compile(r"l[vnm]*[vw][vn]*\Z")
_LETTER: Final = re.compile(r"[vn]*l")
_NO_VOWEL: Final = re.compile(r"[vn]*(?:[lx]|\Z)")
# Words in the names of letters with that property; the test against `regex` checks that none lacks.
_VOWEL: Final = re.compile(r"VOWEL|SARA|LAKKHANGYAO")
_VIRAMA_CLASS: Final = 9  # Canonical_Combining_Class=Virama


class _Contexts:
    """The characters around the joiners of one text, by class.

    Each character is classed once, however many joiners there are: 32 fit into a name.
    """

    __slots__ = ("_conjunct", "_first", "_joining", "_mixed", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._joining = "".join([_JOINING_TYPES.get(char, "U") for char in text])
        self._conjunct = "".join(map(_conjunct_class, text))
        self._mixed = not _is_one_script(text.replace(ZWNJ, "").replace(ZWJ, ""))  # if not, no part is mixed
        self._first = 0  # after the last joiner: what precedes it is not in the context of later ones

    def allow(self, at: int) -> bool:
        """True if there is a joiner that is allowed there. Call it from left to right."""
        first, self._first = self._first, at + 1
        joiner = self._text[at]
        if joiner == ZWNJ:
            return self._meets(first, at, self._joining, _LEFT_OF_BREAK, _RIGHT_OF_BREAK) or self._meets(
                first, at, self._conjunct, _VIRAMA, _LETTER
            )
        return joiner == ZWJ and self._asks_half_form(first, at)

    def _meets(self, first: int, at: int, classes: str, left: re.Pattern[str], right: re.Pattern[str]) -> bool:
        a, b = left.search(classes, first, at), right.match(classes, at + 1)
        if a is None or b is None:
            return False
        return not self._mixed or _is_one_script(self._text[a.start() : at] + self._text[at + 1 : b.end()])

    def _asks_half_form(self, first: int, at: int) -> bool:
        a, b = _VIRAMA.search(self._conjunct, first, at), _NO_VOWEL.match(self._conjunct, at + 1)
        if a is None or b is None or (self._mixed and not _is_one_script(self._text[a.start() : at])):
            return False
        return at + 1 == len(self._text) or not _is_vowel(self._text[b.end() - 1])


# The Joining_Type of characters that have one; others are "U". idna's ranges are
# (first << 32 | end), end exclusive; the test against `regex` reads them too.
_JOINING_TYPES: Final = {
    chr(point): kind
    for kind in "DLRT"
    for span in idnadata.joining_types[kind]
    for point in range(span >> 32, span & 0xFFFF_FFFF)
}
_CACHED: Final = 4_096  # characters: more than the scripts that use joiners have


@lru_cache(_CACHED)
def _conjunct_class(char: str) -> str:
    """The class of a character, as one letter.

    l: letter. v, w: virama, nonspacing and spacing. n: nonspacing mark of another combining class;
    m: of class 0. c: other mark. x: anything else.
    """
    category, combining = unicodedata2.category(char), unicodedata2.combining(char)
    if category != "Mn":
        return "w" if combining == _VIRAMA_CLASS else {"L": "l", "M": "c"}.get(category[0], "x")
    return "v" if combining == _VIRAMA_CLASS else "n" if combining else "m"


@lru_cache(_CACHED)
def _script(char: str) -> str:
    first: str = unicodedata2.name(char, "").partition(" ")[0]
    return first


@lru_cache(_CACHED)
def _is_vowel(char: str) -> bool:
    return _VOWEL.search(unicodedata2.name(char, "")) is not None


def _is_one_script(text: str) -> bool:
    """True if all characters are of one script. Marks named COMBINING ... belong to any script."""
    return len(set(map(_script, text)) - {"COMBINING"}) <= 1
