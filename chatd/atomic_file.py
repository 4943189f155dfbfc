"""Writes a file atomically and durably, with its owner and mode set before its name exists.

A reader at any moment, or after a crash, sees the whole file or none.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

PRIVATE_MODE: Final = 0o600


class Access(NamedTuple):
    """Mode, owner and group of a file. -1: as the system sets it."""

    mode: int = PRIVATE_MODE
    uid: int = -1
    gid: int = -1


def write(path: Path, text: bytes, access: Access, *, replace: bool) -> None:
    """Write a file. Raises OSError.

    Without `replace`, an existing file stays, and FileExistsError is raised.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(text)
            if access.uid != -1 or access.gid != -1:
                os.fchown(fd, access.uid, access.gid)
            os.fchmod(fd, access.mode)  # after its group is set, so that no other group can read it
            file.flush()
            os.fsync(fd)
        if replace:
            draft.rename(path)
        else:
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the creation, renaming and removal of its files durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
