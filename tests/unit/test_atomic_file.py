"""A file is there whole or not at all, with its mode from the first byte, and no draft is left."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from chatd.atomic_file import Access, write


def test_it_has_its_mode_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write(path, b"one", Access(), replace=False)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"one", 0o600)
    write(path, b"two", Access(mode=0o640, gid=os.getgid()), replace=True)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two", 0o640)
    assert list(tmp_path.iterdir()) == [path]


def test_without_replace_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        write(path, b"ours", Access(), replace=False)
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_one_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(b"old")

    def fails(_fd: int) -> None:
        raise OSError("seeded: the disk is full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="seeded"):
        write(path, b"new", Access(), replace=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
