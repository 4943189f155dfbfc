"""The vectors as they stand in `vectors/`: files, their version, and what each vector needs.

    load("server") ─► [Vector, ...]     in the order of the files

`Vector.needs` says what a runner must control so that the vector means something. Pure, but for
reading the package's own files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Final, Literal, TypeAlias

from chatd.conformance.values import TOKEN_TTL_S, Frame, as_frame, as_frames, as_int, as_text

Side: TypeAlias = Literal["server", "client"]
FORMAT: Final = 1  # `format` of a file: grows by whatever an older runner could not run
FOLDER: Final = resources.files("chatd.conformance") / "vectors"


@dataclass(frozen=True, slots=True)
class Vector:
    """One vector.

    `settings`: what the server must run with, by chatd's names; empty for any server. `app`: what
    the application does in a vector for clients (`send`, `edit`, ...).
    """

    file: str
    name: str
    steps: list[Frame]
    settings: Frame
    is_drained: bool = False  # the server must drain within it
    lifetimes: frozenset[int] = frozenset()  # of tokens in seconds, but the usual one
    app: frozenset[str] = frozenset()

    @property
    def needs(self) -> str:
        """What a runner must control, as a phrase; empty for a vector that runs anywhere."""
        told = [f"a server with {key}={value}" for key, value in self.settings.items()]
        told += ["to make the server drain"] * self.is_drained
        told += ["tokens of other lifetimes"] * bool(self.lifetimes)
        return ", ".join(told)


def load(side: Side) -> list[Vector]:
    """All vectors for servers, or for clients."""
    files = sorted((FOLDER / side).iterdir(), key=lambda file: file.name)
    return [
        vector
        for file in files
        if file.name.endswith(".json")
        for vector in read(file.name.removesuffix(".json"), json.loads(file.read_text(encoding="utf-8")))
    ]


def read(file: str, content: object) -> list[Vector]:
    """The vectors of one file's content."""
    whole = as_frame(content)
    if as_int(whole["format"]) > FORMAT:
        raise ValueError(f"{file}: its format is {whole['format']}, this runner reads up to {FORMAT}")
    shared = as_frame(whole.get("settings", {}))
    return [_vector(file, one, {**shared, **as_frame(one.get("settings", {}))}) for one in as_frames(whole["vectors"])]


def _vector(file: str, one: Frame, settings: Frame) -> Vector:
    steps = as_frames(one["steps"])
    tokens = list(_found("$token", steps))
    return Vector(
        file,
        as_text(one["name"]),
        steps,
        settings,
        is_drained=any(step.get("server") == "drain" for step in steps),
        lifetimes=frozenset(as_int(as_frame(token).get("ttl_s", TOKEN_TTL_S)) for token in tokens) - {TOKEN_TTL_S},
        app=frozenset(next(iter(as_frame(step["app"]))) for step in steps if "app" in step),
    )


def _found(key: str, value: object) -> Iterator[object]:
    """All that stands under this key, at any depth."""
    match value:
        case dict():
            for name, item in value.items():
                if name == key:
                    yield item
                yield from _found(key, item)
        case list():
            for item in value:
                yield from _found(key, item)


def user_ids() -> Frame:
    """Examples of texts that may become user ids, and of texts that may not."""
    return as_frame(json.loads((FOLDER / "user_ids.json").read_text(encoding="utf-8")))
