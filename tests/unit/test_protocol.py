"""What is read from a client, what is refused and how, and that what is written is the JSON it is
meant to be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatd import errors, protocol
from chatd.ids import Cid, ConvId, DeviceId, Seq, UserId
from chatd.protocol import (
    BODY_BYTES_MAX,
    CURSORS_MAX,
    DELETE,
    EDIT,
    FRAME_BYTES_MAX,
    HISTORY_MAX,
    ID_MAX,
    MESSAGE,
    REQUEST_TYPES,
    TOKEN_CHARS_MAX,
    WATCH_MAX,
    Bounds,
    Request,
    RequestFault,
    Stored,
    decode,
)
from tests.samples import CID, REQUESTS, request

DOC = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
ANY_CODE = {"bad_field", "bad_text", "too_long", "bad_version", "no_conversation", "bad_seq"}


def fault(payload: bytes, last_id: int = 0) -> tuple[int, str, str | None]:
    """(id of the reply, code, field) of a frame that is refused."""
    with pytest.raises(RequestFault) as caught:
        decode(payload, last_id)
    return caught.value.id, caught.value.error.code, caught.value.error.field


# ---- what is taken -------------------------------------------------------------------------------

TAKEN: dict[str, Request] = {
    "hello": protocol.Hello(
        1,
        1,
        "eyJ.a.b",
        DeviceId("phone-7c1"),
        "5f1c",
        {ConvId(12): Seq(57), ConvId(90): Seq(0)},
        "731",
        (UserId("bob"), UserId("carol")),
        True,
    ),
    "send": protocol.Send(1, None, UserId("bob"), Cid(CID), "hi", True),
    "edit": protocol.Edit(1, ConvId(12), None, Cid(CID), Seq(64), "hi there", False),
    "delete": protocol.Delete(1, ConvId(12), None, Cid(CID), Seq(64), False),
    "ack": protocol.Ack(1, ConvId(12), None, Seq(61)),
    "read": protocol.Read(1, None, UserId("bob"), Seq(61)),
    "history": protocol.History(1, ConvId(12), None, Seq(61), None, 20),
    "conversations": protocol.Conversations(1, 20, "1.2"),
    "typing": protocol.Typing(1, ConvId(12), None),
    "presence": protocol.SetPresence(1, True),
    "watch": protocol.WatchRequest(1, (UserId("bob"), UserId("carol"))),
    "skip": protocol.Skip(1, ConvId(12), None, Cid(CID)),
    "refresh": protocol.Refresh(1, "eyJ.a.b"),
    "ping": protocol.PingRequest(1),
}


def test_there_is_a_sample_of_every_request_type() -> None:
    assert set(REQUESTS) == set(TAKEN) == set(REQUEST_TYPES)


@pytest.mark.parametrize("t", REQUEST_TYPES)
def test_each_request_type_is_read(t: str) -> None:
    assert decode(request(t), 0) == TAKEN[t]
    assert type(decode(request(t), 0)) is type(TAKEN[t])


@pytest.mark.parametrize("t", REQUEST_TYPES)
def test_unknown_keys_are_passed_over(t: str) -> None:
    assert decode(request(t, zzz={"deep": [1, None]}, msg="x"), 0) == TAKEN[t]


@pytest.mark.parametrize("t", REQUEST_TYPES)
def test_keys_that_may_be_left_out_have_their_defaults(t: str) -> None:
    required = {"t", "v", "token", "device", "to", "c", "cid", "body", "ref", "seq", "users"}
    got = decode(orjson.dumps({"id": 1} | {k: v for k, v in REQUESTS[t].items() if k in required}), 0)
    match got:
        case protocol.Hello():
            assert got[4:] == (None, {}, None, (), False)
        case protocol.History():
            assert got[3:] == (None, None, 50)
        case protocol.Conversations():
            assert got[1:] == (50, None)
        case protocol.SetPresence():
            assert got.away is False
        case protocol.Send():
            assert got.retry is False
        case _:
            assert got == TAKEN[t]


def test_of_equal_keys_the_last_counts() -> None:
    payload = (
        b'{"id":1,"t":"ping","t":"send","to":"x","to":"bob","cid":"%s","body":"no","body":"hi","retry":true,"id":2}'
        % CID.encode()
    )
    assert decode(payload, 1) == TAKEN["send"]._replace(id=2)


def test_a_cid_is_one_whatever_its_case() -> None:
    sent = decode(request("send", cid=CID.upper()), 0)
    assert isinstance(sent, protocol.Send)
    assert sent.cid == CID


def test_a_name_watched_twice_is_watched_once() -> None:
    assert decode(request("watch", users=["bob", "carol", "bob"]), 0) == TAKEN["watch"]


@pytest.mark.parametrize(
    "text",
    [
        "'; DROP TABLE entries; --",
        "<script>alert(1)</script>",
        "\\u0041",
        "{}",
        "%s %(x)s",
        "a\nb\tc",
        "\u2028\u202e\ufeff",
        "e\u0301",
        "😀",
    ],
)
def test_text_is_taken_as_it_stands(text: str) -> None:
    sent = decode(request("send", body=text), 0)
    assert isinstance(sent, protocol.Send)
    assert sent.body == text


def test_a_user_id_may_look_like_sql_or_script() -> None:
    for name in ("'; DROP TABLE users; --", "<img src=x onerror=alert(1)>"):
        sent = decode(request("send", to=name), 0)
        assert isinstance(sent, protocol.Send)
        assert sent.to == name


bodies = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), min_size=1, max_size=200
).filter(lambda s: len(s.encode()) <= BODY_BYTES_MAX)


@given(bodies, st.integers(1, ID_MAX), st.uuids(), st.booleans(), st.booleans())
def test_whatever_json_a_client_writes_the_body_is_the_same(
    body: str, id: int, cid: object, retry: bool, escaped: bool
) -> None:
    sent = json.dumps(
        {"t": "send", "id": id, "c": "7", "cid": str(cid), "body": body, "retry": retry}, ensure_ascii=escaped
    ).encode()
    assert len(sent) <= FRAME_BYTES_MAX
    assert decode(sent, id - 1) == protocol.Send(id, ConvId(7), None, Cid(str(cid)), body, retry)


@pytest.mark.parametrize("character", ["a", "é", "€", "😀"])
def test_a_body_has_2048_bytes_of_utf8_at_most(character: str) -> None:
    size = len(character.encode())
    fits = character * (BODY_BYTES_MAX // size) + "." * (BODY_BYTES_MAX % size)
    assert len(fits.encode()) == 2048
    assert decode(request("send", body=fits), 0) == protocol.Send(1, None, UserId("bob"), Cid(CID), fits, True)
    assert fault(request("send", body=fits + "."))[:2] == (1, "too_long")
    assert fault(request("edit", body=character + fits))[:2] == (1, "too_long")


def test_the_longest_send_fits_a_frame_also_if_all_of_it_is_escaped() -> None:
    escaped = {"a": "\\u0061", "😀": "\\ud83d\\ude00"}
    cid = "".join(f"\\u{ord(c):04x}" for c in CID)
    to, body = escaped["😀"] * 64, escaped["a"] * BODY_BYTES_MAX
    text = f'{{"t":"send","id":{ID_MAX},"to":"{to}","cid":"{cid}","body":"{body}","retry":true}}'
    assert len(text) <= FRAME_BYTES_MAX
    assert decode(text.encode(), 0) == protocol.Send(
        ID_MAX, None, UserId("😀" * 64), Cid(CID), "a" * BODY_BYTES_MAX, True
    )


def test_bounds_can_be_set() -> None:
    bounds = Bounds(body_bytes=4, watch=1, history=10)
    assert decode(request("send", body="four"), 0, bounds)
    history = decode(request("history", limit=...), 0, bounds)
    assert isinstance(history, protocol.History)
    assert history.limit == 10
    for payload in (request("send", body="fives"), request("watch"), request("history", limit=11), request("hello")):
        with pytest.raises(RequestFault):
            decode(payload, 0, bounds)


# ---- unreadable frames ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"hello",
        b"{",
        b'{"t":"ping","id":1',
        b'{"t":"ping","id":1}}',
        b'{"t":"ping","id":1}{"t":"ping","id":2}',
        b'{"t":"ping","id":1,}',
        b"{'t':'ping','id':1}",
        b"null",
        b"1",
        b'"ping"',
        b"[]",
        b'[{"t":"ping","id":1}]',
        b"\xef\xbb\xbf" + request("ping"),
        request("ping") + b"\0",
        b'{"t":"ping","id":NaN}',
        b'{"t":"ping","id":1,"x":01}',
        b'{"t":"ping","id":1,"x":"\xff"}',
        b'{"t":"ping","id":1,"x":"\xed\xa0\x80"}',  # a surrogate as UTF-8 bytes
        b'{"x":' * 3_000 + b"1" + b"}" * 3_000,
        b"[" * 16_384,
        *(
            b'{"t":"ping","id":%s}' % id
            for id in (
                b"0",
                b"-1",
                b"null",
                b"true",
                b'"1"',
                b"1.0",
                b"1e0",
                b"[1]",
                b"9007199254740992",
                b"%d" % 2**64,
            )
        ),
        b'{"t":"ping"}',
        b'{"id":1}',
        *(b'{"id":1,"t":%s}' % t for t in (b"null", b"1", b"true", b'["ping"]', b'{"ping":1}')),
        b'{"id":1,"T":"ping"}',
    ],
)
def test_an_unreadable_frame_is_answered_with_id_0(payload: bytes) -> None:
    assert fault(payload) == (0, "bad_frame", None)


# A value as JSON text that strict parsers refuse, alone in a frame that is right otherwise.
SPOILED = [
    rb'"cut \ud83d"',
    rb'"\udc00\ud800"',
    rb'"a\ud800b\u0000"',
    b'"a\nb"',
    b'"a\0b"',
    b"1e999",
    b"-1e999",
    b"9" * 10_000,
    b"NaN",
    b"-Infinity",
    b"[" * 7_000 + b"]" * 7_000,
    b'{"x":' * 1_500 + b"1" + b"}" * 1_500,
]
NUMBERS = {"ref", "seq", "before", "after", "limit", "v"}


def spoil(t: str, key: str, value: bytes) -> bytes:
    return orjson.dumps({k: v for k, v in orjson.loads(request(t, 9)).items() if k != key})[:-1] + b',"%s":%s}' % (
        key.encode(),
        value,
    )


@pytest.mark.parametrize(
    ("t", "key"), [(t, key) for t in REQUEST_TYPES for key in REQUESTS[t] if key not in ("t", "id")]
)
def test_a_fault_of_one_value_is_answered_with_the_requests_id(t: str, key: str) -> None:
    for value in SPOILED:
        if (key, value[:1]) in (
            ("features", b"["),
            ("cursors", b"{"),
            ("token", b'"'),
            ("epoch", b'"'),
            ("cursor", b'"'),
        ):
            continue
        id, code, field = fault(spoil(t, key, value))
        number = value[:1] in b"-19NI"
        if key == "body" and not number and value[:1] == b'"':
            assert (id, code, field) == (9, "bad_text", "body"), value
        elif key == "c" and value[:2] != b'"a':
            assert (id, code) == (9, "no_conversation" if value[:1] == b'"' else "bad_field"), value
        elif key == "v":
            assert (id, code) == (9, "bad_version")
        else:
            assert id == 9
            assert code in (
                ("bad_field", "bad_seq") if key in NUMBERS else ("bad_field", "no_conversation", "bad_text")
            ), (value, code)


@pytest.mark.parametrize("t", REQUEST_TYPES)
@pytest.mark.parametrize("value", SPOILED)
def test_what_stands_under_a_key_that_is_ignored_is_ignored(t: str, value: bytes) -> None:
    assert decode(spoil(t, "zzz", value), 0) == TAKEN[t]._replace(id=9)


def test_faults_deeper_within() -> None:
    assert fault(spoil("watch", "users", rb'["bob","\ud83d"]')) == (9, "bad_field", "users")
    assert fault(spoil("hello", "watch", rb'["\ud83d"]')) == (9, "bad_field", "watch")
    assert fault(spoil("hello", "cursors", rb'{"12":"\ud83d"}')) == (9, "bad_field", "cursors")
    assert fault(spoil("hello", "cursors", b'{"12":1e999}')) == (9, "bad_field", "cursors")
    assert fault(spoil("hello", "since", rb'"7\ud83d"')) == (9, "bad_field", "since")
    hello = decode(spoil("hello", "cursors", rb'{"\ud83d":7,"12":5}'), 0)
    assert isinstance(hello, protocol.Hello)
    assert hello.cursors == {12: 5}
    assert decode(rb'{"t":"ping","id":9,"\ud83d":1}', 0) == protocol.PingRequest(9)
    assert fault(rb'{"t":"\ud83d","id":9}') == (9, "unknown_type", None)
    assert fault(rb'{"t":"send","id":9,"body":"\ud83d"}') == (9, "bad_field", "c")
    assert fault(b'{"t":"send","id":9,"to":"bob","cid":"%s","body":"%s\\ud83d"}' % (CID.encode(), b"x" * 2_100)) == (
        9,
        "bad_text",
        "body",
    )
    assert fault(rb'{"t":"ping","id":9,"x":"\ud83d"}', 9) == (9, "bad_id", None)


@given(st.binary(max_size=60))
def test_no_bytes_make_it_fail_otherwise(payload: bytes) -> None:
    assert fault(payload)[1] == "bad_frame"


# ---- readable ones that are wrong ----------------------------------------------------------------


@pytest.mark.parametrize("last_id", [5, 6, ID_MAX])
def test_an_id_must_grow(last_id: int) -> None:
    assert fault(request("ping", 5), last_id) == (5, "bad_id", None)
    assert decode(request("ping", 5), 4) == protocol.PingRequest(5)


@pytest.mark.parametrize("t", ["", "nope", "Send", "entry", "welcome", "ok", "err", "pong", "__class__", "send "])
def test_an_unknown_type_is_told(t: str) -> None:
    assert fault(b'{"id":7,"t":"%s"}' % t.encode()) == (7, "unknown_type", None)


WRONG: dict[str, list[object]] = {
    "token": [None, 1, "", "x" * (TOKEN_CHARS_MAX + 1), [], {}],
    "device": [None, 1, "", "x" * 65, "a b", "é", "a\n", "a/b", ["a"]],
    "epoch": [1, "", "x" * 65, [], True],
    "cursors": [
        1,
        [],
        "12",
        [["12", 5]],
        {"12": -1},
        {"12": "5"},
        {"12": 1.5},
        {"12": None},
        {"12": True},
        {"12": ID_MAX + 1},
        {"x": "5"},
    ],
    "since": [1, "", "x", "-1", "1.5", " 1", "٣", "9" * 20, "1" * 129, [], True],
    "watch": [
        1,
        "bob",
        {"bob": 1},
        [1],
        [None],
        [""],
        ["a\x00"],
        ["x" * 65],
        ["e\n"],
        [["bob"]],
        ["x"] * (WATCH_MAX + 1),
    ],
    "state": [1, "Online", "offline", "hidden", "", [], {}, True],
    "features": [1, "x", [1], [None], {"x": 1}, ["x"] * 33],
    "cid": [
        None,
        1,
        "",
        "x",
        CID[:-1],
        CID + "0",
        CID.replace("-", ""),
        "{" + CID + "}",
        CID.replace("c", "g"),
        CID + "\n",
        [CID],
    ],
    "retry": [1, 0, "true", None, [], {}],
    "limit": [0, -1, HISTORY_MAX + 1, 1.5, 20.0, "20", True, None, [], 2**70],
    "users": [None, 1, "bob", {"bob": 1}, [1], [""], [" bob"], ["x" * 65], [["bob"]], ["x"] * (WATCH_MAX + 1)],
    "cursor": [1, "", "x" * 129, [], {}],
    "body": [None, 1, True, [], {}, ["hi"]],
}


@pytest.mark.parametrize(("t", "key"), [(t, key) for t in REQUEST_TYPES for key in REQUESTS[t] if WRONG.get(key)])
def test_a_wrong_value_is_refused_with_its_field(t: str, key: str) -> None:
    for value in WRONG[key]:
        assert fault(request(t, 9, **{key: value})) == (9, "bad_field", key), value


@pytest.mark.parametrize("v", [None, 0, 2, -1, "1", 1.0, True, [1], ...])
def test_another_version_is_refused(v: object) -> None:
    assert fault(request("hello", 9, v=v)) == (9, "bad_version", None)


SEQ_KEYS = [("edit", "ref"), ("delete", "ref"), ("ack", "seq"), ("read", "seq"), ("history", "before")]


@pytest.mark.parametrize(("t", "key"), SEQ_KEYS)
def test_a_seq_is_an_integer_from_1(t: str, key: str) -> None:
    for value in (0, -1, ID_MAX + 1, 2**63, 2**64, 2**200, -(2**70)):
        assert fault(request(t, 9, **{key: value})) == (9, "bad_seq", key), value
    wrong: object
    for wrong in (1.0, 1.5, "1", True, [1], {}):
        assert fault(request(t, 9, **{key: wrong})) == (9, "bad_field", key), wrong


def test_a_change_names_its_message_by_its_seq_its_cid_or_both() -> None:
    named = Cid("0" * 8 + CID[8:])
    for t in ("edit", "delete"):
        both = decode(request(t, refcid=named.upper()), 0)
        alone = decode(request(t, ref=..., refcid=named), 0)
        assert both == TAKEN[t]._replace(refcid=named)  # type: ignore[call-arg]
        assert alone == decode(request(t, ref=None, refcid=named), 0) == TAKEN[t]._replace(ref=None, refcid=named)  # type: ignore[call-arg]
        assert decode(request(t, refcid=None), 0) == TAKEN[t]
        for wrong in WRONG["cid"][1:]:
            assert fault(request(t, 9, refcid=wrong)) == (9, "bad_field", "refcid"), wrong
        assert fault(request(t, 9, ref=..., refcid=None)) == (9, "bad_field", "ref")
        assert fault(request(t, 9, ref=0, refcid=named)) == (9, "bad_seq", "ref")


def test_history_goes_one_way() -> None:
    assert fault(request("history", after=5)) == (1, "bad_field", "after")
    for wrong in (1.5, "5", True):
        assert fault(request("history", before=..., after=wrong)) == (1, "bad_field", "after")
    for wrong in (-1, ID_MAX + 1):
        assert fault(request("history", before=..., after=wrong)) == (1, "bad_seq", "after")
    assert decode(request("history", before=..., after=0), 0) == protocol.History(1, ConvId(12), None, None, Seq(0), 20)
    assert decode(request("history", before=None, after=None), 0) == protocol.History(
        1, ConvId(12), None, None, None, 20
    )


WHERE = [t for t in REQUEST_TYPES if REQUESTS[t].keys() & {"c", "to"}]


@pytest.mark.parametrize("t", WHERE)
def test_a_conversation_is_named_by_exactly_one_of_c_and_to(t: str) -> None:
    assert fault(request(t, c="12", to="bob")) == (1, "bad_field", "c")
    assert fault(request(t, c=..., to=...)) == (1, "bad_field", "c")
    assert fault(request(t, c=None, to=None)) == (1, "bad_field", "c")
    assert tuple(decode(request(t, c=None, to="bob"), 0))[1:3] == (None, "bob")
    assert tuple(decode(request(t, c="12", to=...), 0))[1:3] == (12, None)
    c: object
    for c in (12, True, ["12"], {}):
        assert fault(request(t, c=c, to=...)) == (1, "bad_field", "c")
    for name in ("", "0", "-1", "012", "1.0", " 1", "1\n", "٣", "x", "9" * 19, "1" * 20, str(2**63)):
        assert fault(request(t, c=name, to=...))[:2] == (1, "no_conversation")
    assert tuple(decode(request(t, c=str(2**63 - 1), to=...), 0))[1] == 2**63 - 1
    for to in (1, True, ["bob"], "", "x" * 65, " bob", "bob\x00", "bo\nb"):
        assert fault(request(t, c=..., to=to)) == (1, "bad_field", "to")


CONTROLS = [chr(n) for n in (*range(0x20), *range(0x7F, 0xA0)) if chr(n) not in "\n\t"]


@pytest.mark.parametrize("t", ["send", "edit"])
def test_control_characters_are_refused_alone_and_within(t: str) -> None:
    for character in CONTROLS:
        for body in (character, f"a{character}b", "é" + character, character + "\n"):
            assert fault(request(t, body=body))[:2] == (1, "bad_text"), repr(body)
    assert fault(request(t, body=""))[:2] == (1, "bad_text")


def test_cursors_of_strange_conversations_are_passed_over() -> None:
    hello = decode(request("hello", cursors={"12": 5, "x": 5, "0": 5, str(2**63): 5, "9" * 25: 5}), 0)
    assert isinstance(hello, protocol.Hello)
    assert hello.cursors == {12: 5}
    assert decode(request("hello", cursors={str(n): 1 for n in range(1, CURSORS_MAX + 1)}), 0)
    assert fault(request("hello", cursors={str(n): 1 for n in range(1, CURSORS_MAX + 2)})) == (
        1,
        "bad_field",
        "cursors",
    )


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=10),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
keys = st.sampled_from(sorted({key for sample in REQUESTS.values() for key in sample} | {"id", "after"}))


@settings(max_examples=500)
@given(st.sampled_from(REQUEST_TYPES), st.dictionaries(keys, values, max_size=4))
def test_any_value_for_any_key_gives_a_request_or_a_fault_and_nothing_else(t: str, spoiled: dict[str, Any]) -> None:
    got: Request | RequestFault
    try:
        got = decode(request(t, **spoiled), 0)
    except RequestFault as refused:
        got = refused
    if not isinstance(got, RequestFault):
        assert got.id == spoiled.get("id", 1)
        return
    if got.id:
        assert got.error.code in ANY_CODE | {"unknown_type"}
        assert got.id == spoiled.get("id", 1)
    else:
        assert got.error.code == "bad_frame"
    assert json.loads(protocol.err(got.id, got.error))["code"] == got.error.code


# ---- encode --------------------------------------------------------------------------------------

ids = st.integers(1, ID_MAX)
convs = st.integers(1, 2**63 - 1)
users = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@given(ids, convs, ids, ids, st.booleans())
def test_ok_frames_are_json(id: int, c: int, seq: int, ts: int, flag: bool) -> None:
    assert json.loads(protocol.ok(id)) == {"t": "ok", "id": id}
    entry = {"t": "ok", "id": id, "c": str(c), "seq": seq, "ts": ts}
    assert json.loads(protocol.ok_entry(id, c, seq, ts, flag)) == entry | ({"dup": True} if flag else {})
    assert json.loads(protocol.ok_cursor(id, c, seq, ts)) == {
        "t": "ok",
        "id": id,
        "c": str(c),
        "delivered": seq,
        "read": ts,
    }
    assert json.loads(protocol.ok_history(id, c, [b"{}", b'{"seq":1}'] if flag else [], flag, seq, ts)) == {
        "t": "ok",
        "id": id,
        "c": str(c),
        "entries": [{}, {"seq": 1}] if flag else [],
        "more": flag,
        "head": seq,
        "floor": ts,
    }


@given(
    convs, ids, ids, users, users, texts, ids, st.sampled_from([MESSAGE, EDIT, DELETE]), st.sampled_from([None, CID])
)
def test_a_live_entry_is_json(
    c: int, seq: int, ts: int, sender: str, to: str, body: str, ref: int, kind: int, cid: str | None
) -> None:
    frame = protocol.entry(
        c,
        seq,
        ts,
        protocol.dumps(sender),
        protocol.dumps(to),
        kind,
        ref if kind else None,
        None if kind == DELETE else body,
        cid,
    )
    expected: dict[str, object] = {
        "t": "entry",
        "c": str(c),
        "seq": seq,
        "ts": ts,
        "from": sender,
        "to": to,
        "kind": ("message", "edit", "delete")[kind],
    }
    if cid:
        expected["cid"] = cid
    if kind != DELETE:
        expected["body"] = body
    if kind != MESSAGE:
        expected["ref"] = ref
    assert json.loads(frame) == expected


STATES: dict[str, tuple[Stored, dict[str, object]]] = {
    "a message": (Stored(61, 5, 0, MESSAGE, CID, "hi", None, None, None, 1, 0), {"kind": "message", "body": "hi"}),
    "edited": (
        Stored(61, 5, 0, MESSAGE, CID, "hi!", None, 63, 7, 1, 0),
        {"kind": "message", "body": "hi!", "rev": 63, "edited": 7},
    ),
    "deleted": (
        Stored(61, 5, 0, MESSAGE, CID, None, None, 64, 8, 1, 0),
        {"kind": "message", "body": None, "rev": 64, "deleted": 8},
    ),
    "an edit": (Stored(61, 5, 0, EDIT, CID, "hi!", 60, None, None, 1, 0), {"kind": "edit", "ref": 60, "body": "hi!"}),
    "an edit of what was deleted": (
        Stored(61, 5, 0, EDIT, CID, None, 60, None, None, 1, 0),
        {"kind": "edit", "ref": 60, "body": None},
    ),
    "a delete": (Stored(61, 5, 0, DELETE, CID, None, 60, None, None, 1, 0), {"kind": "delete", "ref": 60}),
}


@pytest.mark.parametrize("name", STATES)
def test_a_stored_entry_shows_as_it_stands_now(name: str) -> None:
    stored, facts = STATES[name]
    common: dict[str, object] = {"seq": 61, "ts": 5, "from": "alice", "to": "bob"}
    assert json.loads(protocol.stored_entry(b"{", stored, b'"alice"', b'"bob"', False)) == common | facts
    pushed = json.loads(protocol.stored_entry(protocol.entry_head(12), stored, b'"alice"', b'"bob"', True))
    assert pushed == common | facts | {"t": "entry", "c": "12", "cid": CID}


@given(convs, users, users, ids, ids)
def test_receipts_and_typing_are_json(c: int, sender: str, to: str, delivered: int, read: int) -> None:
    both = {"c": str(c), "from": sender, "to": to}
    sender_json, to_json = protocol.dumps(sender), protocol.dumps(to)
    assert json.loads(protocol.receipt(c, sender_json, to_json, delivered, read)) == {
        "t": "receipt",
        **both,
        "delivered": delivered,
        "read": read,
    }
    assert json.loads(protocol.typing(c, sender_json, to_json)) == {"t": "typing", **both}


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (errors.BadField("no `x`", field="x"), {"code": "bad_field", "msg": "no `x`", "field": "x"}),
        (errors.RateLimited("wait", retry_ms=1200), {"code": "rate_limited", "msg": "wait", "retry_ms": 1200}),
        (errors.Blocked("wait", cid=CID), {"code": "blocked", "msg": "wait", "cid": CID}),
        (errors.Refused("a bug"), {"code": "internal", "msg": "a bug"}),
    ],
)
def test_an_error_tells_what_it_knows_and_no_more(error: errors.Refused, facts: dict[str, object]) -> None:
    assert json.loads(protocol.err(7, error)) == {"t": "err", "id": 7} | facts


def test_other_frames_are_made_of_their_keys() -> None:
    assert json.loads(protocol.reply(7, exp=5)) == {"t": "ok", "id": 7, "exp": 5}
    assert json.loads(protocol.frame("notice", kind="drain", retry_ms=5)) == {
        "t": "notice",
        "kind": "drain",
        "retry_ms": 5,
    }


def test_the_documented_numbers_are_the_codes() -> None:
    assert f"`limits.frame_bytes` ({FRAME_BYTES_MAX:,})" in DOC
    assert f"1 to {BODY_BYTES_MAX:,} bytes of UTF-8" in DOC
    assert f"limit 1-{HISTORY_MAX}, {protocol.PAGE_DEFAULT} if absent" in DOC
    assert f"({WATCH_MAX} at most)" in DOC
    assert f"without holes below. {CURSORS_MAX} at most" in DOC
