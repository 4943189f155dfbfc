"""What a redis_url says, and what a wrong one is told. No message shows a piece of it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd import config_sources
from chatd.cluster.redis.url import read
from chatd.errors import SettingError


def wrong(url: str) -> str:
    with pytest.raises(SettingError) as e:
        read(url)
    text = str(e.value)
    assert text.startswith("redis_url: ")
    assert "; " in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (
            "redis://localhost",
            {
                "kind": "server",
                "tls": False,
                "hosts": (("localhost", 6379),),
                "db": 0,
                "username": None,
                "password": None,
            },
        ),
        ("redis://10.0.0.1:7000/3", {"hosts": (("10.0.0.1", 7000),), "db": 3}),
        ("redis://[::1]:7000/", {"hosts": (("::1", 7000),), "db": 0}),
        ("redis://:secret@r", {"username": None, "password": "secret"}),
        ("redis://app:s%40c%2Fr%3A%23@r:1", {"username": "app", "password": "s@c/r:#", "hosts": (("r", 1),)}),
        ("redis://app@r", {"username": "app", "password": None}),
        ("rediss://r", {"kind": "server", "tls": True, "options": {}}),
        (
            "rediss://r?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=false&ssl_cert_reqs=none",
            {"options": {"ssl_ca_certs": "/etc/ca.pem", "ssl_check_hostname": False, "ssl_cert_reqs": "none"}},
        ),
        ("unix:///run/redis/redis.sock", {"kind": "server", "hosts": (), "path": "/run/redis/redis.sock"}),
        ("unix://:secret@/run/redis.sock?db=2", {"path": "/run/redis.sock", "password": "secret", "db": 2}),
        (
            "redis+sentinel://a,b:1,c/main",
            {"kind": "sentinel", "hosts": (("a", 26379), ("b", 1), ("c", 26379)), "service": "main", "db": 0},
        ),
        (
            "redis+sentinel://u:p@a/main/5",
            {"service": "main", "db": 5, "username": "u", "password": "p", "sentinel": {}},
        ),
        (
            "rediss+sentinel://a/m?sentinel_password=s3&sentinel_username=w",
            {"tls": True, "sentinel": {"username": "w", "password": "s3"}},
        ),
        ("redis+cluster://:p@a:1,b:2", {"kind": "cluster", "hosts": (("a", 1), ("b", 2)), "password": "p"}),
        ("rediss+cluster://a/0", {"kind": "cluster", "tls": True, "db": 0}),
    ],
)
def test_each_shape_is_read(url: str, says: dict[str, Any]) -> None:
    found = read(url)
    assert {name: getattr(found, name) for name in says} == says
    for secret in found.secrets:
        assert secret not in found.masked


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:6379", "redis+sentinel://"),
        ("http://s3cret@h", "redis+sentinel://"),
        ("redis://", "redis://host:port"),
        ("redis://:s3cret", "names no host"),  # the host was forgotten
        ("redis://h:s3cret", "names no host"),
        ("redis://h:99999", "names no host"),
        ("redis://h:0", "names no host"),
        ("redis://@h", "take out what stands before the @"),
        ("redis://:@h", "take out what stands before the @"),
        ("redis://:s3c/ret@h", "%2F"),
        ("redis://:s3c?ret@h", "%3F"),
        ("redis://:s3c#ret@h", "%23"),
        ("redis://:s3c@ret@h", "%40"),
        ("redis://:s3c ret@h", "percent-encode"),
        ("redis://:s3crét@h", "percent-encode"),
        ("redis://h\n", "percent-encode"),
        ("redis://[::1", "is no URL"),
        ("redis://a,b", "redis+cluster://host,host"),
        ("redis://h/db", "end it with /0"),
        ("redis://h/0/1", "end it with /0"),
        ("redis://h?decode_responses=true", "takes none"),
        ("redis://h?s3cret=1", "takes none"),
        ("rediss://h?ssl_cert_reqs=maybe", "none|optional|required"),
        ("rediss://h?ssl_ca_certs=", "give a value"),
        ("rediss://h?timeout=1", "ssl_ca_certs"),
        ("unix://run/redis.sock", "unix:///path"),
        ("unix://", "unix:///path"),
        ("unix:///run/", "unix:///path"),
        ("unix:///r.sock?db=x", "wrong db"),
        ("redis+sentinel://a,b", "redis+sentinel://host,host/service"),
        ("redis+sentinel://a/m/x", "after the service"),
        ("redis+sentinel://,/m", "names no host"),
        ("redis+cluster://a/1", "only 0"),
        ("redis+cluster://a,,b", "names no host"),
        ("redis+cluster://" + ",".join(["a"] * 101), "101 hosts"),
    ],
)
def test_a_wrong_one_is_told_the_remedy(url: str, says: str) -> None:
    text = wrong(url)
    assert says in text
    assert "s3c" not in text
    assert "ret" not in text


@given(st.text(alphabet="redisunx+cluter:/@?#&=[]%,.012ab\n é", max_size=60))
def test_nothing_but_a_setting_error_leaves_the_reader(text: str) -> None:
    for url in (text, "redis://" + text, "redis+sentinel://" + text, "unix://" + text):
        with contextlib.suppress(SettingError):
            found = read(url)
            assert found.hosts or found.path


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
        lambda s: s.strip() == s
    )
)
def test_an_encoded_password_comes_back_and_is_never_shown(password: str) -> None:
    from urllib.parse import quote

    found = read(f"redis://user:{quote(password, safe='')}@host")
    assert found.password == password
    assert found.masked == "redis://***@host"


def test_the_setting_takes_every_shape_and_hides_every_password() -> None:
    for url in (
        "redis://:hidden@h",
        "unix://:hidden@/s",
        "rediss+cluster://u:hidden@a,b",
        "redis+sentinel://a/m?sentinel_password=hidden&x=1",
    ):
        settings = config_sources.load({"redis_url": url}, None, {})
        assert "hidden" not in str(config_sources.effective(settings))
    with pytest.raises(SettingError) as e:
        config_sources.load({"redis_url": "http://h"}, None, {})
    assert "redis+cluster://" in str(e.value)
