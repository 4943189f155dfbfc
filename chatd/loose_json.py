"""Reads a frame that strict JSON refuses, so that its request can be answered with its id. Pure.

    orjson.loads ──refuses──► read_object ──► dict, bad values marked │ None: not an object

A browser sends `"\\ud83d"` for a text that was cut inside an emoji. Such a frame shows its `t` and
`id`. If it were answered with `id` 0, its sender would not learn which request is at fault, and an
outbox would send it again on every connection. So a fault stays with its value:

- a lone surrogate stays in its string, and the check of that string refuses it;
- an integer of more than 30 digits, `NaN` and `Infinity` become floats, which no field accepts;
- a string with raw control characters, which JSON wants escaped, is `UNREADABLE`;
- a value nested deeper than the parser allows is `UNREADABLE`.

A bad value under a key that the request does not use is harmless, as any unknown key is. A frame of
wrong structure (a missing bracket, a trailing comma, an escape that does not exist) is None: its
keys would be a guess. Reading costs 2 ms at most for 16 KB; the session counts these frames as any
others.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

KEYS_MAX: Final = 64  # of a nested frame, which is read key by key here: a request has 11 at most
RUNS_MAX: Final = 4_000  # of brackets in a nested value: 2 ms. 2,700 nested objects fit into 16 KB


class Unreadable:
    """The type of `UNREADABLE`: no field accepts it."""


UNREADABLE: Final = Unreadable()


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= 30 else -math.inf if digits[0] == "-" else math.inf


_STRICT: Final = json.JSONDecoder(parse_int=_integer)
_LOOSE: Final = json.JSONDecoder(parse_int=_integer, strict=False)
_CONTROL: Final = re.compile("[\x00-\x1f]")
_SPACE: Final = re.compile(r"[ \t\n\r]*")
# A run of brackets, after anything that is no bracket. The quantifiers are possessive and each
# match is anchored, so a string that does not end costs one pass.
_BRACKETS: Final = re.compile(
    r'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+(?:(?P<opened>[\[{]++)|(?P<closed>[\]}]++))', re.DOTALL
)


def read_object(payload: bytes) -> dict[str, Any] | None:
    """The object of a frame in which only values are bad JSON.

    None if it is not an object in UTF-8, or its structure is wrong.
    """
    try:
        text = payload.decode()
        try:
            found = _STRICT.decode(text)
        except json.JSONDecodeError:
            found = _LOOSE.decode(text)
            if type(found) is dict:
                found = {key: _marked(value) for key, value in found.items()}
        except RecursionError:
            found = _read_by_key(text)
    except (ValueError, RecursionError):
        return None
    return found if type(found) is dict else None


def _marked(value: object) -> object:
    """The value of a frame that has a raw control character somewhere: `UNREADABLE` if it has one.

    The parser does not say where the raw one is, so an escaped one counts as well.
    """
    return UNREADABLE if type(value) is str and _CONTROL.search(value) else value


def _read_by_key(text: str) -> dict[str, Any]:
    """An object of which some value is nested too deeply, read key by key. Raises ValueError."""
    found: dict[str, Any] = {}
    at = _after(text, 0, "{")
    while True:
        key, at = _STRICT.raw_decode(text, at)
        if type(key) is not str or len(found) > KEYS_MAX:
            raise ValueError("not an object, or too many keys")
        at = _after(text, at, ":")
        try:
            found[key], at = _STRICT.raw_decode(text, at)
        except RecursionError:
            found[key], at = UNREADABLE, _end(text, at)
        at = _space(text, at)
        if text[at : at + 1] == "}":
            if _space(text, at + 1) != len(text):
                raise ValueError("text after the object")
            return found
        at = _after(text, at, ",")


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _after(text: str, at: int, mark: str) -> int:
    """The position after a mark and the space around it. Raises ValueError if it is not there."""
    at = _space(text, at)
    if text[at : at + 1] != mark:
        raise ValueError(f"no {mark}")
    return _space(text, at + 1)


def _end(text: str, at: int) -> int:
    """The end of the array or object that begins at `at`.

    Raises ValueError if it has none within `RUNS_MAX` runs of brackets.
    """
    depth = 0
    for _ in range(RUNS_MAX):
        if (run := _BRACKETS.match(text, at)) is None:
            break
        at = run.end()
        depth += run.end("opened") - run.start("opened")
        if (closed := run.end("closed") - run.start("closed")) >= depth > 0 and closed:
            return at - (closed - depth)
        depth -= closed
    raise ValueError("no end")
