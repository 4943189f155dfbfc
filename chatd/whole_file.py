"""A file that is there whole or not at all, for a reader at any instant and after a crash, and with
the right owner and mode from the first byte.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

PRIVATE_MODE: Final = 0o600


class Access(NamedTuple):
    """Whose a file is, and who may use it how. -1: as it comes."""

    mode: int = PRIVATE_MODE
    uid: int = -1
    gid: int = -1


def write(path: Path, text: bytes, access: Access, *, replace: bool) -> None:
    """Without `replace`, a file that is there by now stays and raises FileExistsError.

    Raises OSError.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(text)
            if access.uid != -1 or access.gid != -1:
                os.fchown(fd, access.uid, access.gid)
            os.fchmod(fd, access.mode)  # after its group is right: nobody else may read it meanwhile
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
    """What was made, renamed or removed in it stays so over a crash. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
