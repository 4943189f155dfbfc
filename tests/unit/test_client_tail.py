"""The lines of `chatd tail`."""

from __future__ import annotations

import pytest

from chatd.client.frames import Entry
from chatd.client.tail import line
from chatd.client.values import Kind


def entry(
    kind: Kind = "message",
    body: str | None = "hi",
    *,
    own: bool = False,
    ref: int | None = None,
    peer: str = "bob",
    ts: int = 0,
) -> Entry:
    return Entry("12", peer, 61, ts, own, kind, body, ref)


@pytest.mark.parametrize(("one", "end"), [
    (entry(), "bob > hi"),
    (entry(own=True), "bob < hi"),
    (entry("edit", "hi!", ref=61), "bob > [edits 61] hi!"),
    (entry("delete", None, ref=61), "bob > [deletes 61]"),
    (entry(body=None), "bob > [deleted]"),
    (entry(peer="b\u202eob"), r"b\u202eob > hi"),
    (entry(ts=10**30), f"{10**30} bob > hi"),
    (entry(ts=-(10**16)), "bob > hi"),
])  # fmt: skip
def test_an_entry_is_one_line(one: Entry, end: str) -> None:
    assert line(one).endswith(end)
    assert "\n" not in line(one)
