"""What `chatd nodes` makes of what nodes say of themselves."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.ops.nodes import HEADS, as_json, row, table

BOOT = "0123456789abcdef"
FACTS = {
    "name": "web1/0",
    "host": "web1",
    "port": 8080,
    "pid": 12,
    "version": "0.1.0",
    "sessions": 3,
    "users": 2,
    "postgres_connections": 7,
    "redis_connections": 4,
    "started_ms": 1_790_000_000_000,
}


def test_a_node_is_a_line_and_its_lease_stands_until_it_is_too_old() -> None:
    said = {**FACTS, "admin": ["127.0.0.1", 8081]}
    rows = [
        row(BOOT, 300, orjson.dumps(said), 5_000),
        row("f" * 16, 5_001, orjson.dumps({**FACTS, "name": "web2/0"}), 5_000),
    ]
    head, first, second = table(rows).splitlines()
    assert head.split() == list(HEADS)
    assert first.split()[:11] == ["web1/0", BOOT, "web1:8080", "12", "0.1.0", "3", "2", "7", "4", "0.3", "s"]
    assert "2026-09-2" in first
    assert "lapsed, 5.0 s" in second
    assert [one["stands"] for one in json.loads(as_json(rows))] == [True, False]
    shown = {
        **FACTS,
        "boot": BOOT,
        "lease_age_ms": 300,
        "stands": True,
        "left": False,
        "admin_host": "127.0.0.1",
        "admin_port": 8081,
    }
    assert json.loads(as_json(rows))[0] == shown


def test_a_node_that_drained_has_left() -> None:
    assert "left, 0.3 s" in table([row(BOOT, 300, orjson.dumps({**FACTS, "left": True}), 5_000)])


def test_without_nodes_there_is_the_head_alone() -> None:
    assert table([]).split() == list(HEADS)
    assert json.loads(as_json([])) == []


@pytest.mark.parametrize(
    "info",
    [b"", b"[1]", b"{", b'{"name":7,"pid":"x","sessions":true,"started_ms":1e300}', b'{"started_ms":1234567890123456}'],
)
def test_what_cannot_be_understood_is_shown_as_not_known(info: bytes) -> None:
    one = row(BOOT, 0, info, 5_000)
    assert (one.name, one.pid, one.sessions) == (None, None, None)
    assert table([one]).splitlines()[1].split() == ["?", BOOT, "?", "?", "?", "?", "?", "?", "?", "0.0", "s", "?"]
    json.loads(as_json([one]))


KEYS = st.sampled_from([*sorted(FACTS), "admin"])


@given(st.dictionaries(KEYS, st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1), st.none(), st.floats())), st.text())
def test_nothing_that_a_node_says_reaches_the_terminal_as_anything_but_text(
    facts: dict[str, object], boot: str
) -> None:
    shown = table([row(boot, 1, orjson.dumps(facts), 1)] if all(_utf8(v) for v in facts.values()) else [])
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert shown.count("\n") <= 1


def _utf8(value: object) -> bool:
    return not isinstance(value, str) or value.encode(errors="ignore").decode() == value
