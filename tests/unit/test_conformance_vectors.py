"""The vectors as data: they fit their own schema, and say what they need."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator

from chatd.conformance import vectors
from chatd.conformance.vectors import Side

FOLDER: Final = Path(vectors.__file__).parent / "vectors"
SCHEMA: Final = json.loads((FOLDER / "vectors.schema.json").read_text())
FILES: Final = sorted(FOLDER.glob("*/*.json"))


def problems(side: str, content: object) -> list[str]:
    """What the schema says against a file."""
    validator = Draft202012Validator({"$ref": f"#/$defs/{side}", "$defs": SCHEMA["$defs"]})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_fits_the_schema(path: Path) -> None:
    assert problems(path.parent.name, json.loads(path.read_text())) == []


def test_the_schema_is_one_and_can_say_no() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    good = {"format": 1, "about": "x", "vectors": [{"name": "x", "steps": [{"on": "a", "close": True}]}]}
    assert problems("server", good) == []
    faults: list[tuple[str, Any]] = [("format", 2), ("about", ""), ("vectors", []), ("more", 1)]
    for key, value in faults:
        assert problems("server", {**good, key: value}), key
    for step in ({"on": "a"}, {"on": "a", "close": 1}, {"hello": "a"}, {"on": "a", "ask": {}}, {"wait_ms": "1"}):
        wrong = copy.deepcopy(good)
        wrong["vectors"][0]["steps"] = [step]  # type: ignore[index]
        assert problems("server", wrong), step
    assert problems("client", good)


@pytest.mark.parametrize("side", ["server", "client"])
def test_names_are_claims_that_differ(side: Side) -> None:
    names = [one.name for one in vectors.load(side)]
    assert len(names) >= 30
    assert len(set(names)) == len(names)


def test_a_vector_says_what_it_needs() -> None:
    steps: list[dict[str, object]] = [
        {"hello": "a", "user": "@alice", "with": {"token": {"$token": {"user": "@alice", "ttl_s": 1}}}},
        {"server": "drain"},
    ]
    whole = {"format": 1, "settings": {"lanes": 1}, "vectors": [{"name": "x", "settings": {"b": 2}, "steps": steps}]}
    (one,) = vectors.read("f", whole)
    assert one.needs == "a server with lanes=1, a server with b=2, to make the server drain, tokens of other lifetimes"
    assert one.lifetimes == {1}
    whole["vectors"] = [{"name": "y", "steps": [{"app": {"edit": "x", "to": "bob", "ref": 1}}]}]
    del whole["settings"]
    (other,) = vectors.read("f", whole)
    assert other.needs == ""
    assert other.app == {"edit"}


def test_a_later_format_is_refused() -> None:
    with pytest.raises(ValueError, match="reads up to 1"):
        vectors.read("f", {"format": 2, "vectors": []})


def test_the_examples_of_user_ids_are_there() -> None:
    assert vectors.user_ids().keys() >= {"unicode", "accepted", "refused"}
