"""Documents that are made from `docs/schema/`, for those who want the protocol as one file.

    bundle()      all frames as one JSON Schema: chatd/conformance/frames.schema.json

`make docs` writes them, and tests/tidy/test_protocol_documents.py holds them as current.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
SCHEMAS: Final = ROOT / "docs" / "schema"


def _moved(value: Any, move: Callable[[str], str]) -> Any:
    """A schema with each `$ref` moved, and without `$schema`."""
    if isinstance(value, list):
        return [_moved(item, move) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: move(item) if key == "$ref" else _moved(item, move) for key, item in value.items() if key != "$schema"}


def _frames() -> dict[str, Any]:
    """`client.send` and so on: the schema of each frame, as it stands in its file."""
    return {
        f"{side}.{path.stem}": json.loads(path.read_text())
        for side in ("client", "server")
        for path in sorted((SCHEMAS / side).glob("*.json"))
    }


def bundle() -> dict[str, Any]:
    """All frames in one JSON Schema."""
    shared = json.loads((SCHEMAS / "defs.json").read_text())

    def move(ref: str) -> str:
        assert ref.startswith(("../defs.json#/$defs/", "#/$defs/")), ref
        return ref.removeprefix("../defs.json")

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "chatd.v1: all frames, made from docs/schema by `make docs`",
        "description": shared["description"],
        "$defs": {name: _moved(schema, move) for name, schema in {**shared["$defs"], **_frames()}.items()},
    }


def _as_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


DOCUMENTS: Final[dict[Path, Callable[[], dict[str, Any]]]] = {
    ROOT / "chatd" / "conformance" / "frames.schema.json": bundle,
}


def text_of(path: Path) -> str:
    """The document as it should stand there."""
    return _as_text(DOCUMENTS[path]())


def write() -> None:
    """Write all of them."""
    for path in DOCUMENTS:
        path.write_text(text_of(path))
