"""docs/frames.md, docs/decisions/index.md and docs/drawings/cut.svg are as their sources make them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.tidy import decisions_page, frames_page, generated, moving_picture


@pytest.mark.parametrize("page", generated.PAGES, ids=lambda page: page.name)
def test_a_page_is_as_its_sources_make_it(page: Path) -> None:
    assert generated.PAGES[page]() == page.read_text(), "run `make docs`"


def test_every_key_of_every_schema_has_a_row_and_every_frame_a_heading() -> None:
    page = frames_page.page()
    frames = sorted(frames_page.SCHEMAS.glob("*/*.json"))
    assert len(frames) > 25
    for path in frames:
        schema = json.loads(path.read_text())
        assert all(f"| `{key}` |" in page for key in schema["properties"] if key not in ("t", "id")), path
        assert f"\n### {schema['properties']['t']['const']}" in page, path


def test_a_key_that_nobody_explains_is_found() -> None:
    schema = {"properties": {"colour": {"type": "string"}}}
    with pytest.raises(AssertionError, match=r"what send\.colour means is said nowhere"):
        frames_page.Page().section("send", schema, "send")


def test_a_rule_that_no_note_tells_is_found() -> None:
    with pytest.raises(AssertionError, match="ping has a rule"):
        frames_page.Page().section("ping", {"properties": {}, "not": {}}, "ping")


def test_a_record_whose_number_is_not_that_of_its_file_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0007-seven.md").write_text("# 8. Eight\n")
    monkeypatch.setattr(decisions_page, "FOLDER", tmp_path)
    with pytest.raises(AssertionError, match="another number"):
        decisions_page.page()


def test_the_moving_picture_is_small_stands_still_where_asked_and_loads_nothing() -> None:
    picture = moving_picture.page()
    ElementTree.fromstring(picture)
    assert len(picture) < 300_000
    assert "prefers-reduced-motion:reduce" in picture
    assert not re.search(r"href|url\(|<script|@import", picture)


def test_every_entry_of_the_moving_picture_ends_in_the_row_of_its_seq_at_both_ends() -> None:
    entries = moving_picture.log()
    assert any(moving_picture.waits(entry.said) for entry in entries)
    for end in moving_picture.ENDS:
        assert [moving_picture.slots(end, entry, entries)[-1][1] + 1 for entry in entries] == [1, 2, 3, 4, 5]
    assert max(entry.seen_s for entry in entries) < moving_picture.END_S
