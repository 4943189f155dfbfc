"""A fault of one value leaves the rest of its frame readable, and nothing makes the reader fail or
take long.
"""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.loose_json import KEYS_MAX, RUNS_MAX, UNREADABLE, read_object

DEEP = b"[" * 7_000 + b"]" * 7_000


def shown(value: object) -> object:
    """What has a fault, by its name."""
    return "unreadable" if value is UNREADABLE else value


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (rb'"cut \ud83d"', "cut \ud83d"),
        (rb'"\udc00\ud800"', "\udc00\ud800"),
        (b'"a\nb"', "unreadable"),
        (b'"a\0b"', "unreadable"),
        (b"1e999", float("inf")),
        (b"-" + b"9" * 5_000, float("-inf")),
        (b"Infinity", float("inf")),
        (b"9" * 20, int("9" * 20)),
        (DEEP, "unreadable"),
        (b'{"a":' * 2_700 + b"1" + b"}" * 2_700, "unreadable"),
        (b'[{"a]":' * 1_300 + b'"]}"' + b"}]" * 1_300, "unreadable"),
    ],
)
def test_the_fault_of_a_value_stays_its_own(value: bytes, read: object) -> None:
    found = read_object(b' {"t" : "ping", "x":%s , "id":7} ' % value)
    assert found is not None
    assert {key: shown(it) for key, it in found.items()} == {"t": "ping", "id": 7, "x": read}
    assert list(read_object(b'{"x":%s}' % value) or ()) == ["x"]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"[]",
        b"7",
        b'"x"',
        b"null",
        b"{",
        b'{"a":1',
        b'{"a":1,}',
        b'{"a":1}}',
        b'{"a":1}{}',
        b"{'a':1}",
        b'{"a":01}',
        b'{"a":"\\x41"}',
        b'{"a":"\\u12"}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b"[" * 16_384,
        DEEP,
        b'{"a":' + b"[" * 9_000 + b"}",
        b'{"a":%s"b":1}' % DEEP,
        b'{"a":%s,}' % DEEP,
        b'{"a":%s}x' % DEEP,
        b'{"a":%s,7:1}' % DEEP,
        b'{"a":' + b"[" * 1_100 + b'"' + b'\\"' * 7_000,
    ],
)
def test_what_is_no_object_is_none(payload: bytes) -> None:
    assert read_object(payload) is None


def test_of_equal_keys_the_last_counts() -> None:
    assert read_object(b'{"a":"\\ud800","a":1}') == {"a": 1}
    assert read_object(b'{"a":%s,"a":1}' % DEEP) == {"a": 1}


def test_what_has_a_control_character_may_be_what_has_it_raw() -> None:
    assert {k: shown(v) for k, v in (read_object(b'{"a":"\\n","b":"c","d":"\n"}') or {}).items()} == {
        "a": "unreadable",
        "b": "c",
        "d": "unreadable",
    }


def test_a_nested_frame_that_takes_long_is_none() -> None:
    deep = b"[" * 1_100
    assert read_object(b'{"a":%s%s1%s}' % (deep, b"[1]," * (RUNS_MAX // 2), b"]" * 1_100)) is None
    assert read_object(b'{"a":%s%s1%s}' % (deep, b"[1]," * (RUNS_MAX // 2 - 2), b"]" * 1_100)) is not None
    assert read_object(b"{%s}" % b",".join(b'"%d":%s' % (n, DEEP[6_000:8_000]) for n in range(KEYS_MAX + 2))) is None


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=20),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), values, max_size=5), st.booleans())
def test_it_reads_json_as_any_parser_does(o: dict[str, Any], escaped: bool) -> None:
    text = json.dumps(o, ensure_ascii=escaped)
    assert read_object(text.encode()) == json.loads(text)


surrogates = st.text(st.characters(), max_size=8)


@given(st.dictionaries(surrogates, surrogates, max_size=5), st.text(max_size=10))
def test_beside_a_nested_value_the_others_are_as_they_are(o: dict[str, str], key: str) -> None:
    text = json.dumps(o)
    payload = (
        b"%s,%s:%s}" % (text[:-1].encode(), orjson.dumps(key), DEEP) if o else b"{%s:%s}" % (orjson.dumps(key), DEEP)
    )
    assert read_object(payload) == {**o, key: UNREADABLE}


@given(st.binary(max_size=80))
def test_no_bytes_make_it_fail(payload: bytes) -> None:
    found = read_object(payload)
    assert found is None or type(found) is dict


@given(st.text('{}[]",:\\ud80019 \n', max_size=60))
def test_no_text_makes_it_fail(text: str) -> None:
    found = read_object(text.encode())
    assert found is None or type(found) is dict
