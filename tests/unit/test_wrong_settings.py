"""Every way to give a wrong setting that we could think of: each is one line that names the
setting, where it came from, and what would be right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatd.cluster.redis import url as redis_url
from chatd.config_sources import load
from chatd.errors import SettingError
from chatd.postgres import url

HOST = "a host name or an IP address"

FLAGS: list[tuple[dict[str, str], str]] = [
    ({"port": "-1"}, "an integer from 0 to 65535"),
    ({"port": "65536"}, "an integer from 0 to 65535"),
    ({"port": "80.5"}, "an integer"),
    ({"port": ""}, "an integer"),
    ({"port": "0x50"}, "an integer"),
    ({"port": "tcp://10.0.0.1:8080"}, "an integer"),
    ({"port": "9" * 5000}, "an integer"),
    ({"lanes": "0"}, "from 1 to 64"),
    ({"heartbeat_ms": "20s"}, "an integer from 1000"),
    ({"retention_days": "inf"}, "an integer"),
    ({"allow_remote_dev": "perhaps"}, "true or false"),
    ({"log_level": "INFO"}, "debug, info"),
    ({"log_format": "xml"}, "auto, json, pretty, journal"),
    ({"unknown_recipients": ""}, "keep, refuse"),
    ({"page": "yes"}, "off, on, development"),
    ({"embed_origins": "*"}, "match nothing"),
    ({"embed_origins": "https://a.example;sandbox"}, "scheme://host[:port]"),
    ({"other_nodes": "ignore"}, "warn, refuse"),
    ({"host": ""}, HOST),
    ({"host": "a b"}, HOST),
    ({"host": "http://a"}, HOST),
    ({"host": "a..b"}, HOST),
    ({"host": "-a/"}, HOST),
    ({"host": "x" * 64}, HOST),
    ({"host": "bücher.example"}, HOST),
    ({"host": "a\0b"}, "NUL"),
    ({"admin_host": "a,b"}, HOST),
    ({"data_dir": ""}, "a path"),
    ({"data_dir": "~nobody-of-this-name/x"}, "home folder"),
    ({"data_dir": "/x\0y"}, "NUL"),
    ({"keys_file": ""}, "a path"),
    ({"keys_file": "~nobody-of-this-name/k"}, "home folder"),
    ({"node_name": ""}, "1 to 64"),
    ({"node_name": "näme"}, "printable ASCII"),
    ({"node_name": "a\nb"}, "printable ASCII"),
    ({"redis_prefix": "Chat"}, "a-z 0-9"),
    ({"redis_prefix": "x" * 33}, "1 to 32"),
    ({"origins": "*"}, "match nothing"),
    ({"origins": "https://*.example.org"}, "match nothing"),
    ({"origins": "https://good.example, https://*"}, "match nothing"),
    ({"origins": "chat.example.org"}, "scheme://host[:port]"),
    ({"origins": "https://a.example/"}, "without a path"),
    ({"origins": "https://a.example:99999"}, "scheme://host[:port]"),
    ({"origins": "https://a.example:"}, "scheme://host[:port]"),
    ({"origins": "https://u@a.example"}, "scheme://host[:port]"),
    ({"origins": "https://A.example"}, "in lower case"),
    ({"origins": "wss://a.example"}, "http://... or https://..."),
    ({"origins": "https://bücher.example"}, "xn--"),
    ({"origins": "null"}, "scheme://host[:port]"),
    ({"database_url": "mysql://h/d"}, "postgresql://"),
    ({"database_url": "chatd"}, "postgresql://"),
    ({"database_replica_url": "mysql://h/d"}, "postgresql://"),
    ({"database_replica_url": "postgresql://h/d"}, "which is not set"),
    ({"redis_url": "localhost"}, "redis://"),
    ({"redis_url": "http://h"}, "redis://"),
    ({"keys_file": "k", "port": "8081", "host": "0.0.0.0"}, "takes the chat server's port"),
    ({"keys_file": "k", "port": "8081", "admin_host": "::"}, "takes the chat server's port"),
    ({"edit_window_ms": "90000000", "retention_days": "1"}, "longer than messages are kept"),
    ({"partition_s": "172800", "retention_days": "1"}, "partition_s"),
    ({"lane_queue_max": "10"}, "less than one batch"),
    ({"out_queue_bytes_max": "1024"}, "history_max"),
    ({"admin_host": "0.0.0.0"}, "--allow-remote-dev"),
]  # fmt: skip

FILES: list[tuple[bytes, str]] = [
    (b"port = 'x'", "an integer"),
    (b"port = true", "port: true from port in "),
    (b"port = [1]", "an integer"),
    (b"port = 8080\nport = 8081", "is not TOML"),
    (b"[server]\nport = 1", "server: in "),
    (b"host = 5", HOST),
    (b"origins = 5", "scheme://host"),
    (b"origins = [5]", "scheme://host"),
    (b"origins = ['https://*']", "match nothing"),
    (b"data_dir = ''", "a path"),
    (b"data_dir = 7", "a path"),
    (b"keys-file = 'k'", "did you mean keys_file?"),
    (b"PORT = 1", "did you mean port?"),
    (b"\xef\xbb\xbfport = 1", "byte order mark"),
    (b"host = '\xff'", "not UTF-8"),
    (b"\x7fELF\x02\x01\x01\x00", "is not TOML"),
    (b"port: 8080", "is not TOML"),
    (b"{\"port\": 8080}", "is not TOML"),
    (b"a = " + b"[" * 5000, "is not TOML"),
    (b"#" * ((1 << 20) + 1), "more than"),
]  # fmt: skip

ENVIRONMENT: list[tuple[dict[str, str], str]] = [
    ({"CHATD_PROT": "1"}, "did you mean CHATD_PORT?"),
    ({"CHATD_port": "1"}, "did you mean CHATD_PORT?"),
    ({"CHATD_PORT": "http://h"}, "an integer"),
    ({"CHATD_SERVICE": "x"}, "is not a setting"),
    ({"CHATD_": "x"}, "is not a setting"),
    ({"CHATD_CONFIG": "/nonexistent/chatd.toml"}, "name another file"),
]

DATABASE_URLS: list[tuple[str, str]] = [
    ("postgresql://u:s3cr3t%zz@h/d", "% that encodes no character"),
    ("postgresql://u:s3cr3t%@h/d", "% that encodes no character"),
    ("postgresql://u:s3cr3t%00@h/d", "% that encodes no character"),
    ("postgresql://u:s3cr3t@h/d?sslmod=require", "did you mean sslmode?"),
    ("postgresql://u:s3cr3t@h/d?sslmode=yes", "verify-full"),
    ("postgresql://u:s3cr3t@h/d?connect_timeout=3s", "an integer"),
    ("postgresql://u:s3cr3t@h/d?x", "separator"),
    ("postgresql://u:s3cr3t@h:99999/d", "1 to 65535"),
    ("postgresql://u:s3cr3t@h:port/d", "1 to 65535"),
    ("postgresql://u:s3cr3t@a,b/d?port=1,2,3", "3 ports for 2 hosts"),
    ("postgresql://u:s3cr3t@[::1/d", "cannot be read"),
    ("postgresql://u@h/d?s3cr3t=x", "libpq does not know"),
    ("host=h password=s3cr3t pasword=x", "did you mean password?"),
    ("host=h password='s3cr3t", "cannot be read"),
    ("postgresql://u:s3cr3t@h/d?target_session_attrs=master", "primary"),
]

REDIS_URLS: list[tuple[str, str]] = [
    ("redis://:s3cr3t%zz@h", "% that encodes no character"),
    ("redis://:s3cr3t%@h", "% that encodes no character"),
    ("redis://:s3cr3t%ff@h", "% that encodes no character"),
    ("redis://:s3cr3t@h?decode_responses=true", "takes none"),
    ("redis://:s3cr3t@h:99999", "names no host"),
    ("redis://:s3cr3t@h/x", "number of a database"),
]


def wrong(flags: dict[str, str], file: Path | None, env: dict[str, str]) -> str:
    with pytest.raises(SettingError) as e:
        load(flags, file, env)
    return one_line(e.value)


def one_line(error: SettingError) -> str:
    text = str(error)
    assert text.isprintable()
    assert len(text) < 600
    assert "give text" not in text
    assert "; " in text, "it names no remedy"
    assert error.__cause__ is None or "s3cr3t" not in str(error.__cause__)
    assert "s3cr3t" not in text
    return text


@pytest.mark.parametrize(("flags", "says"), FLAGS, ids=range(len(FLAGS)))
def test_a_wrong_flag(flags: dict[str, str], says: str) -> None:
    text = wrong(flags, None, {})
    assert says in text
    assert text.partition(":")[0] in [*flags, "host", "admin_port"]


@pytest.mark.parametrize(("content", "says"), FILES, ids=range(len(FILES)))
def test_a_wrong_file(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "chatd.toml"
    file.write_bytes(content)
    assert says in wrong({}, file, {})


@pytest.mark.parametrize(("env", "says"), ENVIRONMENT)
def test_a_wrong_variable(env: dict[str, str], says: str) -> None:
    assert says in wrong({}, None, env)


@pytest.mark.parametrize("make", [Path.mkdir, None])
def test_a_file_of_settings_that_cannot_be_read(tmp_path: Path, make: Any) -> None:
    if make is not None:
        make(tmp_path / "chatd.toml")
    assert "name another file" in wrong({}, tmp_path / "chatd.toml", {})


@pytest.mark.parametrize(("given", "says"), DATABASE_URLS)
def test_a_wrong_url_of_the_database_is_told_without_a_piece_of_it(given: str, says: str) -> None:
    with pytest.raises(SettingError, match=r"^database_url: ") as e:
        url.check(given)
    assert says in one_line(e.value)
    with pytest.raises(SettingError, match=r"^database_replica_url: "):
        url.check(given, "database_replica_url")


@pytest.mark.parametrize(("given", "says"), REDIS_URLS)
def test_a_wrong_url_of_redis_is_told_without_a_piece_of_it(given: str, says: str) -> None:
    with pytest.raises(SettingError, match=r"^redis_url: ") as e:
        redis_url.read(given)
    assert says in one_line(e.value)


@pytest.mark.parametrize(
    "given",
    [
        "postgresql://u:p%25%C3%BC@h:5432/d?sslmode=verify-full&connect_timeout=3",
        "postgresql:///d?host=/run/postgresql",
        "host=a,b port=1,2 dbname=d",
        "host=a,b port=1",
        "postgresql://db1,db2,db3/chatd?target_session_attrs=any",
        "host=",
        "service=chat",
        "postgresql://[::1]:1/d",
        "postgresql://h/d?options=-csearch_path%3Dchat&application_name=x&keepalives_idle=5",
    ],
)
def test_urls_that_are_right(given: str) -> None:
    url.check(given)


def test_an_origin_is_kept_as_browsers_send_it() -> None:
    given = "https://a.example:443,http://a.example:80,http://[::1]:8080,https://b.example:80,chrome-extension://abc,"
    origins = [
        "https://a.example",
        "http://a.example",
        "http://[::1]:8080",
        "https://b.example:80",
        "chrome-extension://abc",
    ]
    assert load({"origins": given}, None, {}).origins == origins
