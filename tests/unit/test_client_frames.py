"""Reading what a server says: liberal with what is new, exact with what must be there, and never
another exception than ProtocolError.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.client import frames
from chatd.client.arguments import check_body, check_user, checked_cid
from chatd.client.errors import ClientError, ProtocolError, RequestError
from chatd.client.frames import Entry, Limits, Receipt
from chatd.errors import ChatdError

ENTRY = {
    "t": "entry",
    "c": "12",
    "seq": 61,
    "ts": 1_790_000_000_123,
    "from": "bob",
    "to": "alice",
    "kind": "message",
    "body": "hi",
}
ITEM = {
    "c": "12",
    "peer": "bob",
    "head": 60,
    "floor": 1,
    "ts": 1,
    "delivered": 57,
    "read": 57,
    "peer_delivered": 60,
    "peer_read": 44,
    "unread": 2,
    "open": True,
}
WELCOME = {
    "t": "welcome",
    "id": 1,
    "user": "alice",
    "epoch": "e",
    "ts": 5,
    "exp": 9,
    "limits": {"history": 7, "new": 1},
    "conversations": [ITEM],
    "presence": [{"user": "bob", "state": "online", "v": 17}],
    "more": False,
    "since": "s",
}
READERS: list[tuple[Callable[[dict[str, Any]], object], dict[str, Any]]] = [
    (lambda o: frames.pushed_entry(o, "alice"), ENTRY),
    (frames.item, ITEM),
    (frames.welcome, WELCOME),
    (lambda o: frames.receipt(o, "alice"), {"c": "12", "from": "alice", "to": "bob", "delivered": 3, "read": 2}),
    (frames.presence, {"user": "bob", "state": "offline", "v": 18, "seen": 1}),
    (frames.typing, {"c": "12", "from": "bob", "to": "alice"}),
    (frames.notice, {"t": "notice", "kind": "drain", "retry_ms": 3}),
    (frames.sent, {"t": "ok", "id": 1, "c": "12", "seq": 64, "ts": 3}),
    (lambda o: frames.page(o, "alice"), {"c": "12", "entries": [ENTRY], "more": True, "head": 64, "floor": 1}),
    (frames.conversation_page, {"conversations": [ITEM], "cursor": "x"}),
    (frames.presences, {"presence": [{"user": "bob", "state": "hidden", "v": 0}]}),
]
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.just({}),
)


def test_an_entry_is_seen_from_the_users_side() -> None:
    assert frames.pushed_entry(ENTRY, "alice") == Entry("12", "bob", 61, 1_790_000_000_123, False, "message", "hi")
    assert frames.pushed_entry(ENTRY | {"cid": "x"}, "bob") == Entry(
        "12", "alice", 61, 1_790_000_000_123, True, "message", "hi", cid="x"
    )
    notes = frames.pushed_entry(ENTRY | {"to": "bob"}, "bob")
    assert (notes.peer, notes.own) == ("bob", True)


def test_a_receipt_is_seen_from_the_users_side() -> None:
    frame = {"c": "12", "from": "alice", "to": "bob", "delivered": 3, "read": 2}
    assert frames.receipt(frame, "alice") == Receipt("12", "bob", "alice", 3, 2)
    assert frames.receipt(frame, "bob") == Receipt("12", "alice", "alice", 3, 2)


def test_a_deleted_message_has_no_body() -> None:
    e = frames.pushed_entry(ENTRY | {"body": None, "deleted": 8, "rev": 70}, "alice")
    assert (e.body, e.deleted, e.rev) == (None, 8, 70)


def test_limits_keep_their_defaults_where_the_server_says_nothing() -> None:
    assert frames.welcome(WELCOME).limits == Limits(history=7)
    assert frames.limits({}) == Limits()


def test_unknown_keys_are_passed_over() -> None:
    for read, frame in READERS:
        assert read(frame | {"new": {"deep": [1]}}) == read(frame)


@given(st.data())
def test_whatever_a_server_sends_is_read_or_a_protocol_error(data: st.DataObject) -> None:
    read, frame = data.draw(st.sampled_from(READERS))
    changed = dict(frame)
    for key in data.draw(st.lists(st.sampled_from(sorted(frame)), max_size=3)):
        if data.draw(st.booleans()):
            changed.pop(key, None)
        else:
            changed[key] = data.draw(ANYTHING)
    with contextlib.suppress(ProtocolError):
        read(changed)


@pytest.mark.parametrize("key", ["seq", "from", "to", "kind", "c", "ts"])
def test_what_must_be_there_is_missed(key: str) -> None:
    with pytest.raises(ProtocolError, match=key):
        frames.pushed_entry({k: v for k, v in ENTRY.items() if k != key}, "alice")


@pytest.mark.parametrize("peer", ["\u0645\u06cc\u200c\u062e", "\u0378", "\u2764\ufe0f"])
def test_whom_only_the_server_can_judge_is_not_refused_here(peer: str) -> None:
    """Joiners, and what a later Unicode has; and who is older than the rule."""
    check_user(peer)


def test_an_err_frame_becomes_an_error_with_its_keys() -> None:
    e = RequestError.of({"code": "blocked", "msg": "wait", "cid": "c", "retry_ms": 5, "field": "x"})
    assert (e.code, e.msg, e.retry_ms, e.field, e.cid, str(e)) == ("blocked", "wait", 5, "x", "c", "blocked: wait")
    odd = RequestError.of({"retry_ms": "soon", "field": 1})
    assert (odd.code, odd.retry_ms, odd.field) == ("internal", None, None)
    assert issubclass(ClientError, ChatdError)


@pytest.mark.parametrize(("call", "code"), [
    (lambda: check_user(" bob"), "bad_field"),
    (lambda: check_user(""), "bad_field"),
    (lambda: check_body("\ud800", 10), "bad_text"),
    (lambda: check_body("ää", 3), "too_long"),
    (lambda: checked_cid("x"), "bad_field"),
])  # fmt: skip
def test_what_no_frame_can_hold_is_refused_here(call: Callable[[], None], code: str) -> None:
    with pytest.raises(RequestError) as e:
        call()
    assert e.value.code == code


def test_a_cid_is_written_as_the_wire_writes_it() -> None:
    assert checked_cid("8C1E0000000040008000000000000001") == "8c1e0000-0000-4000-8000-000000000001"
