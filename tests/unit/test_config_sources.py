"""Settings: where they come from, and what a wrong one says."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import pytest

from chatd import config_sources
from chatd.config import Settings
from chatd.config_sources import load
from chatd.errors import SettingError


def wrong(
    flags: Mapping[str, object] | None = None, *, env: Mapping[str, str] | None = None, file: Path | None = None
) -> str:
    with pytest.raises(SettingError) as e:
        load(flags or {}, file, env or {})
    text = str(e.value)
    assert "\n" not in text
    return text


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "chatd.toml"
    path.write_text(text)
    return path


def test_flags_come_before_environment_before_file_before_defaults(tmp_path: Path) -> None:
    file = toml(tmp_path, "port = 1\nadmin_port = 2\nlanes = 3\n")
    settings = load({"port": "11"}, file, {"CHATD_PORT": "21", "CHATD_ADMIN_PORT": "22"})
    assert (settings.port, settings.admin_port, settings.lanes, settings.rate_messages) == (11, 22, 3, 10)
    origins = {name: origin for name, _, origin in config_sources.effective(settings)}
    assert origins["port"] == "--port"
    assert origins["admin_port"] == "CHATD_ADMIN_PORT"
    assert origins["lanes"] == f"lanes in {file}"
    assert origins["rate_messages"] == "default"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"port": "70000"}, ("port: 70000 from --port", "give an integer from 0 to 65535")),
        ({"port": "http"}, ("port", "give an integer")),
        ({"log_level": "loud"}, ("log_level", "one of debug, info, warning, error")),
        (
            {"host": "0.0.0.0"},
            ("host: 0.0.0.0 from --host can be reached from outside", "--keys-file", "--allow-remote-dev"),
        ),
        ({"frame_bytes_max": "2048"}, ("frame_bytes_max", "give more than")),
        ({"port": "8081"}, ("admin_port", "give another")),
        ({"workers": "2", "database_url": "postgresql://d"}, ("workers: 2 from --workers", "--redis-url")),
        (
            {"workers": "3", "redis_url": "redis://r", "admin_port": "8078"},
            ("admin_port: 8078 from --admin-port", "3 from 8078 on", "give another"),
        ),
        (
            {"workers": "3", "redis_url": "redis://r", "admin_port": "65534"},
            ("admin_port", "end at 65536", "give 65533 or less"),
        ),
        ({"redis_url": "localhost:6379"}, ("redis_url: the value from --redis-url", "redis://")),
        ({"origins": "HTTPS://Chat.example.org/x"}, ("origins", "scheme://host[:port]")),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_remedy(keys: dict[str, str], says: tuple[str, ...]) -> None:
    text = wrong(keys)
    for part in says:
        assert part in text


def test_unknown_names_are_refused_with_what_was_meant(tmp_path: Path) -> None:
    assert "did you mean CHATD_PORT?" in wrong(env={"CHATD_PROT": "1"})
    assert "did you mean port?" in wrong(file=toml(tmp_path, "prot = 1"))
    assert "is not TOML" in wrong(file=toml(tmp_path, "port: 1"))
    assert "name another file" in wrong(file=tmp_path / "none.toml")


def test_no_secret_in_any_message() -> None:
    url = "postgresql://chatd:s3cr3t@db/chatd"
    settings = load({"database_url": url, "redis_url": "redis://:s3cr3t@r:1/0"}, None, {})
    assert "s3cr3t" not in str(config_sources.effective(settings)) + repr(settings)
    assert "s3cr3t" not in wrong({"database_url": "mysql://u:s3cr3t@db"})


def test_the_environment_made_of_settings_gives_the_same_ones(tmp_path: Path) -> None:
    given = {
        "port": "0",
        "database_url": "postgresql://chatd:s3cr3t@db/chatd",
        "redis_url": "redis://:s3cr3t@r:1/0",
        "allow_remote_dev": "true",
        "origins": "https://a.example,https://b.example",
        "data_dir": str(tmp_path / "d"),
        "workers": "4",
        "node_name": "a b",
        "log_level": "debug",
    }
    for settings in (Settings(), load(given, None, {})):
        again = load({}, None, config_sources.environment(settings))
        assert again.model_dump() == settings.model_dump()


def test_flags_that_are_not_shown_are_taken_all_the_same() -> None:
    parser = argparse.ArgumentParser()
    config_sources.add_flags(parser, shown=False)
    assert "--port" not in parser.format_help()
    assert vars(parser.parse_args(["--port", "1"])) == {"port": "1"}


def test_every_setting_is_a_flag_and_in_the_docs_table() -> None:
    parser = argparse.ArgumentParser()
    config_sources.add_flags(parser)
    table, usage = config_sources.docs_table(), parser.format_help()
    for name in Settings.model_fields:
        assert f"`{name}`" in table
        assert "--" + name.replace("_", "-") in usage
    assert vars(parser.parse_args([])) == {}
