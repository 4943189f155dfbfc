r"""Makes text from the wire harmless for a terminal. Pure.

    inert("\x1b[31mred")        "␛[31mred"     a control character is a picture of itself
    inert("\u202ecod.exe")      "\\u202ecod.exe"
    inert("a" + "\u0301" * 99)  "a" and 4 of them

Guarantee of `inert`: no control character, no bidirectional control and no line separator is left.
A base character carries at most `COMBINING_MAX` characters without a width, and one that has
nothing to stand on gets a dotted circle, so nothing reaches into the cells before it. Joiners and
variation selectors stay, because scripts and emoji need them. Characters that only hide (zero width
spaces, tags, marks of direction) are left out.

`isolated` keeps the order of text in a right-to-left script from reaching beyond it. Markup is no
concern here: the widgets never parse any.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from rich.cells import cell_len

COMBINING_MAX: Final = 4  # what Vietnamese, Hebrew with points and emoji with joiners need
TAB: Final = "    "
REPLACEMENT: Final = "\ufffd"
DOTTED_CIRCLE: Final = "\u25cc"
JOINERS: Final = ("\u200c", "\u200d")
HIDING: Final = frozenset(
    [0x00AD, 0x061C, 0x200B, 0x200E, 0x200F, 0x2060, 0x2061, 0x2062, 0x2063, 0x2064, 0xFEFF, *range(0xE0001, 0xE0080)]
)
FSI, PDI = "\u2068", "\u2069"
RIGHT_TO_LEFT: Final = frozenset(["R", "AL", "AN"])


def inert(text: str, *, lines: bool = False) -> str:
    """`text` without anything that a terminal obeys. With `lines`, ends of lines stay as `\\n`."""
    if text.isascii() and text.isprintable():
        return text
    out: list[str] = []
    carried = COMBINING_MAX  # by the last base; at a start there is no base, so there is no room
    has_base = False
    for c in text.replace("\r\n", "\n").replace("\u2028", "\n").replace("\u2029", "\n"):
        if c == "\n" and lines:
            out.append(c)
            has_base = False
        elif c in JOINERS or _is_combining(c):
            if not has_base:
                if c in JOINERS:
                    continue
                out.append(DOTTED_CIRCLE)
                has_base, carried = True, 0
            if carried < COMBINING_MAX:
                out.append(c)
                carried += 1
        elif ord(c) not in HIDING:
            shown = _shown(c)
            out.append(shown)
            has_base, carried = not shown.isspace(), 0
    return "".join(out)


def _is_combining(c: str) -> bool:
    category = unicodedata.category(c)
    return category in ("Mn", "Me", "Mc") or (category[0] in "LNPS" and cell_len(c) == 0)


def _shown(c: str) -> str:
    """One character that is no combining one."""
    point = ord(c)
    if c == "\t":
        return TAB
    if point < 0x20:
        return chr(0x2400 + point)
    if point == 0x7F:
        return "\u2421"
    if (
        unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        or point & 0xFFFE == 0xFFFE
        or 0xFDD0 <= point <= 0xFDEF
    ):
        return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
    return c


def isolated(text: str) -> str:
    """One line of inert text whose direction ends with it."""
    if text.isascii() or not any(unicodedata.bidirectional(c) in RIGHT_TO_LEFT for c in text):
        return text
    return f"{FSI}{text}{PDI}"


def one_for_one(text: str) -> str:
    """`text` with a sign in the place of each character that a terminal may obey, or that would
    pile up.

    Its length stays, so that places in it do: for a text that is being edited.
    """
    if text.isascii() and text.isprintable():
        return text
    out: list[str] = []
    carried = 0
    for c in text:
        is_carried = c in JOINERS or _is_combining(c)
        carried = carried + 1 if is_carried else 0
        shown = c if c == "\t" or is_carried else _shown(c)
        out.append(shown if len(shown) == 1 and carried <= COMBINING_MAX else REPLACEMENT)
    return "".join(out)


def fitted(text: str, width: int) -> str:
    """One line of inert text in at most `width` cells; `…` stands for what is cut off."""
    if cell_len(text) <= width:
        return text
    kept = ""
    for c in text:
        if cell_len(kept + c) > width - 1:
            break
        kept += c
    return kept + "…" if width > 0 else ""


def size_of(body: str) -> int:
    """Bytes of a body as the server counts them: its UTF-8; half of a surrogate pair counts as one
    replacement character, because it is refused anyway.
    """
    return len(body.encode("utf-8", "replace"))
