"""Holds what a server sends to the JSON schemas of the frames.

    checks.judge("ok_send", frame, where)     each frame that arrived
    checks.cases()                            a case for each schema

The schemas are `frames.schema.json`: all of docs/schema in one file, made by `make docs`. Keys that
they do not name are allowed, for a later server may send them. Without jsonschema, which is no
dependency of chatd, nothing is judged, and the cases say so.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Final

from chatd.conformance.report import Case, Verdict
from chatd.conformance.values import Frame, as_frame

GROUP: Final = "schemas"
KEPT: Final = 3  # problems that a reason quotes
FILE: Final = resources.files("chatd.conformance") / "frames.schema.json"
MISSING: Final = f"needs jsonschema: {sys.executable} -m pip install jsonschema"


def bundle() -> Frame:
    """All schemas of the frames; `$defs` has `client.send`, `server.entry` and so on."""
    return as_frame(json.loads(FILE.read_text(encoding="utf-8")))


class FrameChecks:
    """Judges frames of the server, and counts them by schema."""

    def __init__(self) -> None:
        schemas = as_frame(bundle()["$defs"])
        self._names = [name.removeprefix("server.") for name in schemas if name.startswith("server.")]
        self._problems_of = _validator()
        self._counts: dict[str, int] = defaultdict(int)
        self._problems: dict[str, list[str]] = defaultdict(list)

    def judge(self, name: str, frame: Frame, where: str) -> None:
        """Hold a frame to a schema; `where` it arrived, for the reason."""
        if self._problems_of is None:
            return
        self._counts[name] += 1
        if name not in self._names:
            self._problems[name].append(f"{where}: the protocol has no frame `{name}`: {frame}")
            return
        self._problems[name] += [
            f"{where}: {problem} in {json.dumps(frame)[:300]}" for problem in self._problems_of(name, frame)
        ]

    def cases(self) -> Iterator[Case]:
        """One for each schema, and for each type that has none."""
        for name in dict.fromkeys([*self._names, *self._counts]):
            title = f"each `{name}` fits its schema"
            problems = self._problems[name]
            if self._problems_of is None:
                yield Case(GROUP, title, Verdict.NOT_RUN, MISSING)
            elif problems:
                yield Case(GROUP, title, Verdict.FAILED, f"{len(problems)} problems: " + "; ".join(problems[:KEPT]))
            elif not self._counts[name]:
                yield Case(GROUP, title, Verdict.NOT_RUN, "needs a frame of this type: no case that ran brought one")
            else:
                yield Case(GROUP, title, Verdict.PASSED)


def _validator() -> Callable[[str, Frame], list[str]] | None:
    """What is wrong with a frame by a schema, or None without jsonschema."""
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        return None
    definitions = as_frame(_for_python(bundle()["$defs"]))
    validators = {name: Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": definitions}) for name in definitions}

    def problems(name: str, frame: Frame) -> list[str]:
        return [f"{error.json_path} {error.message}" for error in validators[f"server.{name}"].iter_errors(frame)]

    return problems


def _for_python(schema: object) -> object:
    """The schema with each `pattern` as Python means it.

    ECMA 262, which JSON Schema names, has no newline before `$`.
    """
    match schema:
        case dict():
            return {
                key: item.replace("$", r"\Z") if key == "pattern" and isinstance(item, str) else _for_python(item)
                for key, item in schema.items()
            }
        case list():
            return [_for_python(item) for item in schema]
    return schema
