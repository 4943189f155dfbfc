"""The checks of single fields. How they make requests is in `test_protocol.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chatd import errors
from chatd import request_fields as fields
from chatd.loose_json import UNREADABLE
from chatd.request_fields import CURSORS_MAX, FEATURES_MAX, ID_MAX, Bounds

SMALL = Bounds(body_bytes=4, watch=2, history=10)
CID = "0B0E9D8A-1111-2222-3333-444455556666"

TAKEN: list[tuple[Callable[[], Any], Any]] = [
    (lambda: fields.text({"k": "abc"}, "k", 3), "abc"),
    (lambda: fields.conv("9223372036854775807", "c"), 2**63 - 1),
    (lambda: fields.where({"c": "12"}), (12, None)),
    (lambda: fields.where({"to": "bob"}), (None, "bob")),
    (lambda: fields.seq({"seq": ID_MAX}, "seq"), ID_MAX),
    (lambda: fields.seq({"seq": 0}, "seq", 0), 0),
    (lambda: fields.cid({"cid": CID}), CID.lower()),
    (lambda: fields.message({"ref": 7}), (7, None)),
    (lambda: fields.message({"refcid": CID}), (None, CID.lower())),
    (lambda: fields.message({"ref": 7, "refcid": CID}), (7, CID.lower())),
    (lambda: fields.body({"body": "\u00e9\n\t"}, SMALL), "\u00e9\n\t"),
    (lambda: fields.flag({}, "retry"), False),
    (lambda: fields.limit({}, SMALL), 10),
    (lambda: fields.limit({"limit": 3}, SMALL), 3),
    (lambda: fields.users({"users": ["b", "a", "b"]}, "users", Bounds()), ("b", "a")),
    (lambda: fields.away({}), False),
    (lambda: fields.away({"state": "away"}), True),
    (lambda: fields.cursors({"cursors": {"12": 0, "x": 5, str(2**63): 1}}), {12: 0}),
    (lambda: fields.device({"device": "Phone-1"}), "Phone-1"),
    (lambda: fields.since({"since": "1a.2b.3c"}), "1a.2b.3c"),
    (lambda: fields.since({"since": "17"}), "17"),
]


@pytest.mark.parametrize(("check", "value"), TAKEN)
def test_a_valid_field_gives_its_value(check: Callable[[], Any], value: object) -> None:
    assert check() == value


REFUSED: list[tuple[Callable[[], Any], type[errors.ClientFault], str | None]] = [
    (lambda: fields.text({"k": ""}, "k", 3), errors.BadField, "k"),
    (lambda: fields.text({"k": "abcd"}, "k", 3), errors.BadField, "k"),
    (lambda: fields.user(7, "to"), errors.BadField, "to"),
    (lambda: fields.user(" bob", "to"), errors.BadField, "to"),
    (lambda: fields.conv(12, "c"), errors.BadField, "c"),
    (lambda: fields.conv("012", "c"), errors.NoConversation, None),
    (lambda: fields.conv("9223372036854775808", "c"), errors.NoConversation, None),
    (lambda: fields.where({}), errors.BadField, "c"),
    (lambda: fields.where({"c": "1", "to": "bob"}), errors.BadField, "c"),
    (lambda: fields.seq({"seq": True}, "seq"), errors.BadField, "seq"),
    (lambda: fields.seq({"seq": 1.5}, "seq"), errors.BadField, "seq"),
    (lambda: fields.seq({"seq": float("nan")}, "seq"), errors.BadField, "seq"),
    (lambda: fields.seq({"seq": 1e30}, "seq"), errors.BadSeq, "seq"),
    (lambda: fields.seq({"seq": 0}, "seq"), errors.BadSeq, "seq"),
    (lambda: fields.seq({"seq": ID_MAX + 1}, "seq"), errors.BadSeq, "seq"),
    (lambda: fields.cid({"cid": CID.replace("-", "")}), errors.BadField, "cid"),
    (lambda: fields.message({}), errors.BadField, "ref"),
    (lambda: fields.body({"body": "\u00e9\u00e9\u00e9"}, SMALL), errors.TooLong, None),
    (lambda: fields.body({"body": ""}, SMALL), errors.BadText, None),
    (lambda: fields.body({"body": "a\x00"}, SMALL), errors.BadText, None),
    (lambda: fields.body({"body": "\ud83d"}, SMALL), errors.BadText, "body"),
    (lambda: fields.body({"body": UNREADABLE}, SMALL), errors.BadText, "body"),
    (lambda: fields.body({"body": 7}, SMALL), errors.BadField, "body"),
    (lambda: fields.flag({"retry": 1}, "retry"), errors.BadField, "retry"),
    (lambda: fields.limit({"limit": 11}, SMALL), errors.BadField, "limit"),
    (lambda: fields.limit({"limit": 0}, SMALL), errors.BadField, "limit"),
    (lambda: fields.users({"users": ["a", "b", "c"]}, "users", SMALL), errors.BadField, "users"),
    (lambda: fields.away({"state": "gone"}), errors.BadField, "state"),
    (lambda: fields.cursors({"cursors": {"12": -1}}), errors.BadField, "cursors"),
    (lambda: fields.cursors({"cursors": {str(n): 1 for n in range(CURSORS_MAX + 1)}}), errors.BadField, "cursors"),
    (lambda: fields.device({"device": "my phone"}), errors.BadField, "device"),
    (lambda: fields.check_features({"features": ["f"] * (FEATURES_MAX + 1)}), errors.BadField, "features"),
    (lambda: fields.check_features({"features": [1]}), errors.BadField, "features"),
    (lambda: fields.since({"since": "yesterday"}), errors.BadField, "since"),
]


@pytest.mark.parametrize(("check", "error", "field"), REFUSED)
def test_an_invalid_field_is_refused_by_name(
    check: Callable[[], Any], error: type[errors.ClientFault], field: str | None
) -> None:
    with pytest.raises(error) as caught:
        check()
    assert type(caught.value) is error
    assert caught.value.field == field
