"""What an app passes in is refused before it becomes a frame, in the words of the server."""

from __future__ import annotations

import pytest

from chatd.client.arguments import check_body, check_user, checked_cid
from chatd.client.errors import RequestError


def test_what_can_be_sent_passes() -> None:
    check_user("alice")
    check_body("é" * 1_024, 2_048)
    assert checked_cid("8C1E0000-0000-4000-8000-00000000000A") == "8c1e0000-0000-4000-8000-00000000000a"


@pytest.mark.parametrize(
    ("call", "code", "field"),
    [
        (lambda: check_user(""), "bad_field", "to"),
        (lambda: check_user("a" * 300), "bad_field", "to"),
        (lambda: check_body("é" * 1_025, 2_048), "too_long", "body"),
        (lambda: check_body("\ud800", 2_048), "bad_text", "body"),
        (lambda: checked_cid("one"), "bad_field", "cid"),
    ],
)
def test_what_cannot_be_sent_is_refused_as_the_server_would(call: object, code: str, field: str) -> None:
    assert callable(call)
    with pytest.raises(RequestError) as e:
        call()
    assert (e.value.code, e.value.field) == (code, field)
