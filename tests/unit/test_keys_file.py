"""`chatd keys new`: a file for the keys, and one more key in it."""

from __future__ import annotations

import grp
import os
import stat
import threading
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from chatd.chat.auth import KEYS_MAX, KeySet, Verifier, issue
from chatd.errors import SettingError
from chatd.ids import UserId
from chatd.ops import keys_file

if TYPE_CHECKING:
    from pathlib import Path


def kids(path: Path) -> list[str | None]:
    return [key.kid for key in KeySet.load(path).all()]


@pytest.mark.parametrize("algorithm", ["HS256", "EdDSA", "RS256"])
def test_a_key_that_is_made_signs_and_checks(tmp_path: Path, algorithm: keys_file.Algorithm) -> None:
    path = tmp_path / "keys.json"
    assert keys_file.add(path, algorithm, "one", None) == "one"
    keys, now = KeySet.load(path), time.time()
    assert keys.warnings == ()
    assert Verifier(keys, None, None, 0).verify(issue(keys, UserId("alice"), 9, now, None, None), now).user == "alice"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_key_stands_behind_the_others_and_the_day_is_its_name(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, second, third = (keys_file.add(path, "HS256", None, None) for _ in range(3))
    assert len(first) == len("2026-11-29")
    assert (second, third) == (f"{first}-2", f"{first}-3")
    assert kids(path) == [first, second, third]


def test_owner_mode_link_and_other_members_of_the_file_stay(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path, link = tmp_path / "real" / "keys.json", tmp_path / "keys.json"
    path.write_bytes(orjson.dumps({"keys": [{**keys_file.make("HS256", "old"), "note": "ours"}], "by": "hand"}))
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12_345, 23_456)
    was = path.stat()
    link.symlink_to(path)
    keys_file.add(link, "HS256", "new", None)
    content, now = orjson.loads(path.read_bytes()), path.stat()
    assert (content["by"], content["keys"][0]["note"], kids(path)) == ("hand", "ours", ["old", "new"])
    assert (now.st_mode, now.st_uid, now.st_gid) == (was.st_mode, was.st_uid, was.st_gid)
    assert link.is_symlink()


def test_a_group_may_read_a_file_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys_file.add(path, "HS256", None, grp.getgrgid(os.getegid()).gr_name)
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o640, os.getegid())


NAMELESS = {k: v for k, v in keys_file.make("HS256", "x").items() if k != "kid"}


@pytest.mark.parametrize(
    ("content", "kid", "says"),
    [
        (b"", None, "is not JSON"),
        (b'{"keys": 7}', None, "no list"),
        (orjson.dumps({"keys": [keys_file.make("HS256", "a")]}), "a", "has a key a already"),
        (orjson.dumps({"keys": [NAMELESS]}), None, "without `kid`"),
        (
            orjson.dumps({"keys": [keys_file.make("HS256", str(n)) for n in range(KEYS_MAX)]}),
            None,
            "the most there can be",
        ),
        (None, "", "--kid"),
        (None, "a\nb", "--kid"),
        (None, "x" * 65, "--kid"),
    ],
    ids=range(8),
)
def test_what_is_there_is_never_overwritten(tmp_path: Path, content: bytes | None, kid: str | None, says: str) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingError, match=says):
        keys_file.add(path, "HS256", kid, None)
    assert (path.read_bytes() if path.exists() else None) == content


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "keys.json", tmp_path / "file" / "keys.json", tmp_path):
        with pytest.raises(SettingError, match=r"^keys_file: .*; "):
            keys_file.add(path, "HS256", None, None)
    with pytest.raises(SettingError, match="groupadd"):
        keys_file.add(tmp_path / "k", "HS256", None, "no-such-group-here")


def test_two_who_add_a_key_at_the_same_time_both_find_theirs(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(keys_file.add(path, "HS256", None, None))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == sorted(kid for kid in kids(path) if kid is not None)
    assert len(set(made)) == 8


def test_the_list_has_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    jwks: list[dict[str, Any]] = [keys_file.make("HS256", "a\x1b[1m"), keys_file.make("EdDSA", "b")]
    public = {k: v for k, v in keys_file.make("EdDSA", "c").items() if k != "d"}
    path.write_bytes(orjson.dumps({"keys": [*jwks, public]}))
    table = keys_file.table(KeySet.load(path))
    assert [line.split()[-2:] for line in table.splitlines()[1:]] == [
        ["and", "checks"],
        ["and", "checks"],
        ["checks", "only"],
    ]
    assert "\x1b" not in table
    assert not any(jwk[name] in table for jwk in jwks for name in ("k", "d", "x") if name in jwk)
