"""What is made from docs/schema is current, and says what the schemas say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from chatd.conformance.schemas import bundle
from tests.frame_schemas import FRAMES, validator
from tests.frame_schemas import REQUESTS as TYPES
from tests.js.test_gates import needs_node
from tests.samples import REQUESTS
from tests.tidy import protocol_documents


@pytest.mark.parametrize("path", protocol_documents.DOCUMENTS, ids=lambda path: path.name)
def test_a_document_is_that_of_the_schemas(path: Path) -> None:
    assert protocol_documents.text_of(path) == path.read_text(), "run `make docs`"


@pytest.mark.parametrize("t", REQUESTS)
def test_the_bundle_judges_as_the_files_do(t: str) -> None:
    bundled = Draft202012Validator({"$ref": f"#/$defs/client.{t}", "$defs": bundle()["$defs"]})
    good = {"id": 1, **REQUESTS[t]}
    for key in (None, *good):
        frame = {name: value for name, value in good.items() if name != key}
        assert bundled.is_valid(frame) == validator(f"client/{t}").is_valid(frame)
    assert bundled.is_valid(good)


def problems(document: object, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """What @asyncapi/parser says of it; exit status 1 for an error or a warning."""
    path = tmp_path / "asyncapi.json"
    path.write_text(json.dumps(document))
    command = ["node", str(Path(__file__).with_name("asyncapi.mjs")), str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@needs_node
def test_the_asyncapi_document_is_one(tmp_path: Path) -> None:
    result = problems(protocol_documents.asyncapi(), tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_node
def test_a_wrong_asyncapi_document_is_seen(tmp_path: Path) -> None:
    document = protocol_documents.asyncapi()
    document["operations"]["push.entry"]["messages"] = [{"$ref": "#/channels/chat/messages/server.nothing"}]
    assert "server.nothing" in problems(document, tmp_path).stdout


def test_every_frame_is_in_an_operation() -> None:
    document = protocol_documents.asyncapi()
    named = json.dumps(document["operations"])
    wanted = {f"client.{t}" for t in TYPES} | {f"server.{t}" for t in FRAMES}
    assert {name for name in wanted if f'/{name}"' not in named} == set()
