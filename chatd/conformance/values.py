"""The values of vectors: what stands for a user, a cid or a text, and whether an answer matches.

    Values(token).made(value)      what is sent for a value of a vector
    values.match(pattern, got)     raises Mismatch unless `got` is as the pattern says

The notation is in docs/conformance.md. A `Values` belongs to one run of one vector: its users and
cids are fresh, and it keeps what `$name` stored. Pure, but for the random names.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import TypeAlias

from chatd.errors import ChatdError

Frame: TypeAlias = dict[str, object]  # a JSON object: a frame of the wire, or a step of a vector
MakeToken: TypeAlias = Callable[[str, Frame], str]  # of a user, with the options of `$token`

TOKEN_TTL_S = 3600  # where `$token` does not say


class Mismatch(ChatdError):
    """The other side did something else than a vector or a rule says."""


def as_frame(value: object) -> Frame:
    """The value, which must be an object."""
    if not isinstance(value, dict):
        raise Mismatch(f"expected an object, got {value!r}")
    return value


def as_list(value: object) -> list[object]:
    """The value, which must be a list."""
    if not isinstance(value, list):
        raise Mismatch(f"expected a list, got {value!r}")
    return value


def as_int(value: object) -> int:
    """The value, which must be an integer; True and False are none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise Mismatch(f"expected an integer, got {value!r}")
    return value


def as_text(value: object) -> str:
    """The value, which must be a text."""
    if not isinstance(value, str):
        raise Mismatch(f"expected a text, got {value!r}")
    return value


def as_frames(value: object) -> list[Frame]:
    """The value, which must be a list of objects."""
    return [as_frame(item) for item in as_list(value)]


def no_token(user: str, options: Frame) -> str:
    """For patterns that need no token."""
    raise Mismatch(f"no token can be made for {user}")


class Values:
    """The values of one run of a vector.

    `is_plain`: a text is nothing special unless it begins with `$`, as in vectors for clients,
    whose users and cids are fixed.
    """

    def __init__(self, token: MakeToken = no_token, *, is_plain: bool = False) -> None:
        self.stored: Frame = {}
        self._token = token
        self._is_plain = is_plain
        self._run = uuid.uuid4().hex[:8]
        self._cids: dict[str, str] = {}

    # ---- what is sent ----------------------------------------------------------------------------

    def made(self, value: object) -> object:
        """What stands for `value` in something that is sent."""
        match value:
            case str():
                return self._text(value)
            case list():
                return [self.made(item) for item in spread(value)]
            case dict() if len(value) == 1 and next(iter(value)).startswith("$"):
                ((word, given),) = value.items()
                return self._word(word, given)
            case dict():
                return {key: self.made(item) for key, item in value.items()}
        return value

    def made_frame(self, value: object) -> Frame:
        """The same, of an object."""
        return as_frame(self.made(value))

    def _text(self, text: str) -> object:
        if text[:1] == "$" and (not self._is_plain or text in self.stored):
            return self.stored[text]
        if self._is_plain:
            return text
        match text[:1]:
            case "@":
                return f"{text[1:]}-{self._run}"
            case "#":
                return self._cids.setdefault(text, str(uuid.uuid4()))
        return text

    def _word(self, word: str, given: object) -> object:
        match word:
            case "$literal":
                return given
            case "$add":
                return sum(as_int(self.made(item)) for item in as_list(given))
            case "$concat":
                return "".join(as_text(self.made(item)) for item in as_list(given))
            case "$repeat":
                what, times = as_list(given)
                return as_text(self.made(what)) * as_int(times)
            case "$times":
                what, times = as_list(given)
                return [self.made(what)] * as_int(times)
            case "$keys":
                return {str(n): 0 for n in range(1, as_int(given) + 1)}
            case "$object":
                pairs = [as_list(pair) for pair in as_list(given)]
                return {as_text(self.made(key)): self.made(item) for key, item in pairs}
            case "$token":
                options = self.made_frame(given)
                return self._token(as_text(options.pop("user")), options)
        raise ValueError(f"no such value: {word}")

    # ---- what is expected ------------------------------------------------------------------------

    def matches(self, pattern: object, got: object) -> bool:
        """Whether `got` is as the pattern says."""
        try:
            self.match(pattern, got)
        except Mismatch:
            return False
        return True

    def match(self, pattern: object, got: object) -> None:
        """Raise Mismatch unless `got` is as the pattern says; store what the pattern names."""
        match pattern:
            case str():
                self._match_text(pattern, got)
            case list():
                if not isinstance(got, list) or len(got) != len(pattern):
                    raise Mismatch(f"expected {len(pattern)} elements, got {got}")
                for one, other in zip(pattern, got, strict=True):
                    self.match(one, other)
            case dict() if len(pattern) == 1 and next(iter(pattern)).startswith("$"):
                self._match_word(*next(iter(pattern.items())), got)
            case dict():
                self._match_object(pattern, as_frame(got))
            case _:
                if got != pattern or type(got) is not type(pattern):
                    raise Mismatch(f"expected {pattern!r}, got {got!r}")

    def _match_object(self, pattern: Frame, got: Frame) -> None:
        for key, item in pattern.items():
            if item == "!":
                if key in got:
                    raise Mismatch(f"`{key}` must be absent: {got}")
            elif key not in got:
                raise Mismatch(f"no `{key}` in {got}")
            else:
                self.match(item, got[key])

    def _match_text(self, pattern: str, got: object) -> None:
        match pattern:
            case "*":
                good = True
            case "*int":
                good = type(got) is int
            case "*str":
                good = isinstance(got, str) and bool(got)
            case "*true":
                good = got is True
            case _ if pattern.startswith("$"):
                good = self.stored.setdefault(pattern, got) == got
            case _:
                good = got == self._text(pattern)
        if not good:
            raise Mismatch(f"expected {pattern!r} ({self.stored.get(pattern)!r}), got {got!r}")

    def _match_word(self, word: str, given: object, got: object) -> None:
        match word:
            case "$above":
                good = type(got) is int and got > as_int(self.made(given))
            case "$below":
                good = type(got) is int and got < as_int(self.made(given))
            case "$one_of":
                good = any(self.matches(pattern, got) for pattern in as_list(given))
            case _:
                good = got == self._word(word, given)
        if not good:
            raise Mismatch(f"expected {word} {given}, got {got!r}")


def spread(items: Sequence[object]) -> list[object]:
    """A list with its `$spread` laid out; the elements as they are."""
    out: list[object] = []
    for item in items:
        match item:
            case {"$spread": {"$times": [what, int(times)]}}:
                out += [what] * times
            case {"$spread": list(more)}:
                out += more
            case _:
                out.append(item)
    return out
