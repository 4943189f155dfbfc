"""The JSON schemas of `docs/schema/` as validators.

`pattern` means what ECMA 262 means by it: Python's `$` would let a newline at the end through.
`strict=True` also forbids keys that the schema does not name: readers must ignore such keys, but
our own server must not send any.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.jsonschema import DRAFT202012

FOLDER = Path(__file__).parent.parent / "docs" / "schema"
REQUESTS = tuple(sorted(path.stem for path in (FOLDER / "client").glob("*.json")))
FRAMES = tuple(sorted(path.stem for path in (FOLDER / "server").glob("*.json")))


def _pattern(validator: Any, pattern: str, instance: object, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not re.search(pattern.replace("$", r"\Z"), instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


_Validator: Any = extend(Draft202012Validator, {"pattern": _pattern})  # type: ignore[no-untyped-call]


@functools.cache
def validator(name: str, *, strict: bool = False) -> Any:
    """The validator of `client/NAME` or `server/NAME`."""
    schemas = {uri: _strict(schema) if strict else schema for uri, schema in _schemas().items()}
    registry: Registry[Any] = Registry().with_resources(
        (uri, DRAFT202012.create_resource(schema)) for uri, schema in schemas.items()
    )
    return _Validator({"$ref": f"file:///{name}.json"}, registry=registry)


@functools.cache
def _schemas() -> dict[str, Any]:
    schemas = {
        f"file:///{path.relative_to(FOLDER).as_posix()}": json.loads(path.read_text())
        for path in FOLDER.rglob("*.json")
    }
    for schema in schemas.values():
        del schema["$schema"]  # jsonschema would leave our validator for the one that it names
    return schemas


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if made.get("type") == "object" and "additionalProperties" not in made:
        made["unevaluatedProperties"] = False
    return made


def schemas_of(frame: dict[str, Any]) -> list[str]:
    """The server's schemas that a frame fits by its type; of `ok` there are several."""
    if frame["t"] == "ok":
        return [f"server/{name}" for name in FRAMES if name.startswith("ok")]
    return [f"server/{frame['t']}"] if frame["t"] in FRAMES else []


def problems(frame: dict[str, Any]) -> list[str]:
    """What is wrong with a frame of the server's; empty if one schema takes it, key by key."""
    found = []
    for name in schemas_of(frame):
        errors = [
            f"{name}: {error.json_path} {error.message}" for error in validator(name, strict=True).iter_errors(frame)
        ]
        if not errors:
            return []
        found += errors
    return found or [f"no schema for {frame['t']}"]
