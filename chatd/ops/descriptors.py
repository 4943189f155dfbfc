"""How many files this process may have open, and how many of them are left for clients.

A client takes one descriptor. With none left, the event loop would accept and drop connections
without an answer, the admin port would not answer, and PostgreSQL could not be connected to again.
So a node accepts only as many connections as leave room for its own (`fitted`). It refuses others
with an answer, and counts them.
"""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chatd.errors import SettingError

if TYPE_CHECKING:
    from chatd.config import Settings

SPARE: Final = 128  # admin port, Redis, log, files of libraries, connections that are being refused
TOOL_MIN: Final = 64  # for a command that starts the embedded PostgreSQL
UNBOUNDED: Final = 1 << 31


def limit() -> int:
    """How many files this process may have open (the soft limit)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNBOUNDED if soft == resource.RLIM_INFINITY else soft


def held() -> int:
    """How many are open. If the list of them cannot be opened, all are."""
    folder = Path("/proc/self/fd")
    try:
        # Since Linux 6.2 the folder's size is their number. Listing 100,000 takes 50 ms of the
        # loop.
        return folder.stat().st_size or sum(1 for _ in folder.iterdir()) - 1
    except OSError:
        return limit()


def raise_limit() -> None:
    """Raise the soft limit to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it; `chatd doctor` shows the limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def own(settings: Settings) -> int:
    """Descriptors of a node that are not clients'."""
    return settings.lanes + settings.pool_max + 2 + settings.replica_connections + SPARE


def fitted(settings: Settings) -> tuple[Settings, str | None]:
    """(settings with as many connections as fit, a sentence if they are fewer than set).

    Raises SettingError if there is no room for any.
    """
    room = limit() - own(settings)
    if room >= settings.connections_max:
        return settings, None
    if room < 1:
        needed = f"a node with these settings needs {own(settings)} of its own"
        raise SettingError(f"open files: {limit()} are allowed, and {needed}; {REMEDY}")
    instead = f"{room} clients instead of connections_max = {settings.connections_max}"
    sentence = f"{limit()} open files are allowed: {instead}; {REMEDY}"
    return settings.model_copy(update={"connections_max": room}), sentence


def check_tool() -> None:
    """Raise SettingError if a command cannot start the embedded PostgreSQL."""
    if limit() < TOOL_MIN:
        raise SettingError(f"open files: {limit()} are allowed, and this needs {TOOL_MIN}; {REMEDY}")


REMEDY: Final = "raise the limit (LimitNOFILE= of the unit, `ulimit -n`)"
