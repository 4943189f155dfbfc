"""What a setting that is text must look like, and the reasons that are told where it cannot be."""

from __future__ import annotations

import pytest

from chatd.setting_checks import WORDS, canonical_origin, check, is_loopback, overlap

RIGHT = [
    ("host", "chat.example"),
    ("host", "chat.example."),
    ("host", "::1"),
    ("host", "fe80::1%eth0"),
    ("admin_host", "127.0.0.1"),
    ("database_url", "postgresql://u:p@h/d"),
    ("database_url", "host=/tmp dbname=x"),
    ("database_replica_url", "postgresql://u:p@a,b/d"),
    ("redis_url", "redis+sentinel://a,b/s"),
    ("redis_url", "unix:///x"),
    ("redis_prefix", "a.b_c-1"),
    ("node_name", "n 1"),
    ("origins", "https://chat.example:8443"),
    ("origins", "http://[::1]"),
    ("origins", "app://localhost"),
    ("data_dir", "anything at all"),
]
WRONG = [
    ("host", "", "is wrong"),
    ("host", "a..b", "is wrong"),
    ("host", "a" * 64, "is wrong"),
    ("host", ".".join(["a" * 60] * 5), "is wrong"),
    ("admin_host", "a b", "is wrong"),
    ("database_url", "mysql://h", "is wrong"),
    ("database_replica_url", "mysql://h", "is wrong"),
    ("redis_url", "http://h", "is wrong"),
    ("redis_prefix", "A", "is wrong"),
    ("redis_prefix", "a" * 33, "is wrong"),
    ("node_name", "é", "is wrong"),
    ("origins", "*", "has a \\* in it"),
    ("origins", "https://Chat.example", "is wrong"),
    ("origins", "https://chat.example/", "is wrong"),
    ("origins", "https://chat.example:0", "is wrong"),
    ("origins", "https://chat.example:65536", "is wrong"),
    ("origins", "https://chät.example", "is not ASCII"),
    ("origins", "wss://chat.example", "would match nothing"),
    ("data_dir", "a\0b", "has a NUL"),
]


@pytest.mark.parametrize(("name", "text"), RIGHT)
def test_what_can_be_right_passes(name: str, text: str) -> None:
    check(name, text)


@pytest.mark.parametrize(("name", "text", "says"), WRONG)
def test_what_can_never_work_is_told_without_its_value(name: str, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as e:
        check(name, text)
    assert len(text) < 5 or text not in str(e.value)


def test_every_shape_that_is_checked_has_words() -> None:
    assert {name for name, _, says in WRONG if "NUL" not in says} <= set(WORDS)


def test_an_origin_is_as_browsers_send_it() -> None:
    assert canonical_origin("https://a:443") == "https://a"
    assert canonical_origin("https://a:80") == "https://a:80"
    assert canonical_origin("app://a:443") == "app://a:443"


@pytest.mark.parametrize(
    ("host", "is_it"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a", False)]
)
def test_loopback(host: str, is_it: bool) -> None:
    assert is_loopback(host) is is_it


def test_who_listens_everywhere_takes_the_port_of_everybody() -> None:
    assert overlap("a", "a")
    assert overlap("0.0.0.0", "a")
    assert overlap("a", "::")
    assert not overlap("a", "b")
