"""What is made from docs/schema is current, and says what the schemas say."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from chatd.conformance.schemas import bundle
from tests.frame_schemas import validator
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
