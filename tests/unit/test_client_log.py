"""A ready log: the same messages from the same entries, in whatever order and form they arrive."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.client import Entry, Frame, Log, Message, frames
from chatd.client import log as log_module
from chatd.client.testing import FakeChatd


def entry(seq: int, kind: str = "message", body: str | None = "hi", ref: int | None = None, **more: int) -> Entry:
    return Entry("1", "bob", seq, 1_000 + seq, False, kind, body, ref, **more)  # type: ignore[arg-type]


def test_edits_and_deletes_change_their_message() -> None:
    log = Log()
    assert log.add(entry(1, body="hi")) == Message(1, 1_001, False, "hi")
    assert log.add(entry(2, "edit", "hi!", 1)) == Message(1, 1_001, False, "hi!", rev=2, edited=1_002)
    assert log.add(entry(3, "delete", None, 1)) == Message(1, 1_001, False, None, rev=3, deleted=1_003)
    assert log.add(entry(2, "edit", "hi!", 1)) is None, "an earlier state"
    assert log.add(entry(4, "unknown", None)) is None
    assert [m.seq for m in log] == [1]
    assert log.get(1) is not None
    assert log.get(2) is None


def test_only_so_many_changes_of_messages_that_are_not_held_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "CHANGES_MAX", 2)
    log = Log()
    for seq in (11, 12, 13):
        log.add(entry(seq, "edit", f"to {seq}", seq - 10))
    assert [m.body for m in map(log.add, (entry(1), entry(2), entry(3))) if m is not None] == ["hi", "to 12", "to 13"]


def test_the_oldest_are_forgotten_and_can_be_added_again() -> None:
    log = Log()
    for seq in range(1, 6):
        log.add(entry(seq))
    log.trim(2)
    log.trim(2)
    assert ([m.seq for m in log], log.get(3), len(log)) == ([4, 5], None, 2)
    log.add(entry(3))
    assert [m.seq for m in reversed(log)] == [5, 4, 3]


@given(st.integers(0, 2**32))
def test_pages_and_pushes_in_any_order_end_in_the_same_log(seed: int) -> None:
    """The pages are those of the fake server: each with the messages as they stood at its time."""
    rng, server = random.Random(seed), FakeChatd()
    conv = server.conv("bob", "me")
    seen: list[Entry] = []

    def read(o: Frame) -> Entry:
        return frames.entry(o, conv.c, "me")

    for _ in range(12):
        messages = [e["seq"] for e in conv.log if e["kind"] == "message"]
        kind = rng.choice(("message", "edit", "delete")) if messages else "message"
        gone = {e["ref"] for e in conv.log if e["kind"] == "delete"}
        ref = rng.choice(messages) if messages else None
        if kind != "message" and ref in gone:
            continue
        keys: dict[str, Any] = {} if kind == "delete" else {"body": f"text {rng.random()}"}
        keys |= {} if kind == "message" else {"ref": ref}
        pushed = server.add(conv, "bob", kind, f"cid-{conv.head}", None, **keys)
        seen.append(read({k: v for k, v in pushed.items() if k != "cid"}))
        if rng.random() < 0.4:
            at = rng.randrange(len(conv.log))
            seen += map(read, conv.page(conv.log[at : at + rng.randint(1, 6)], "me"))
    last = list(map(read, conv.page(conv.log, "me")))
    expected = Log()
    for one in last:
        expected.add(one)
    rng.shuffle(seen)
    log = Log()
    for one in seen:
        log.add(one)
    assert list(log) == list(expected)
    assert len(log) == len(list(log))
