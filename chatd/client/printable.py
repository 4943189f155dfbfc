"""Text of others, made safe for a terminal."""

from __future__ import annotations

from typing import Final

ESCAPES: Final = {"\n": r"\n", "\t": r"\t", "\\": r"\\"}


def escaped(text: str) -> str:
    """`text` without anything that a terminal obeys."""
    return "".join(c if c.isprintable() and c != "\\" else _escape(c) for c in text)


def _escape(c: str) -> str:
    point = ord(c)
    if c in ESCAPES:
        return ESCAPES[c]
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
