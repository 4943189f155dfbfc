"""How many files this process may have open, and what that leaves for clients.

A client is a descriptor. Where none is left, the event loop takes a client's connection and drops
it without a word, the admin port is dead, and PostgreSQL cannot be reached anew. So a node never
comes that far: it takes no more connections than leave room for its own (`fitted`, which cli.py
applies), and refuses the rest with an answer and a count.
"""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chatd.errors import SettingError

if TYPE_CHECKING:
    from chatd.config import Settings

SPARE: Final = 128  # admin port, Redis, log, libraries' files, connections that are just being refused
TOOL_MIN: Final = 64  # for a PostgreSQL that a command starts for itself
UNBOUNDED: Final = 1 << 31


def limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNBOUNDED if soft == resource.RLIM_INFINITY else soft


def held() -> int:
    """How many are open. Where not even the list of them can be opened, all are."""
    folder = Path("/proc/self/fd")
    try:
        # From Linux 6.2 on the folder's size is their number. To list 100,000 takes 50 ms of the
        # event loop.
        return folder.stat().st_size or sum(1 for _ in folder.iterdir()) - 1
    except OSError:
        return limit()


def raise_limit() -> None:
    """As many as we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it; `chatd doctor` tells what there is
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def own(settings: Settings) -> int:
    """Those of a node that are no client's."""
    return settings.lanes + settings.pool_max + 2 + SPARE


def fitted(settings: Settings) -> tuple[Settings, str | None]:
    """Settings with no more connections than there is room for, and a sentence where that is fewer
    than were asked for. Raises SettingError.
    """
    room = limit() - own(settings)
    if room >= settings.connections_max:
        return settings, None
    if room < 1:
        raise SettingError(
            f"open files: {limit()} are allowed, and a node with these settings needs {own(settings)} of its own; {REMEDY}"
        )
    sentence = f"{limit()} open files are allowed: {room} clients instead of connections_max = {settings.connections_max}; {REMEDY}"
    return settings.model_copy(update={"connections_max": room}), sentence


def check_tool() -> None:
    """For a command that starts a PostgreSQL. Raises SettingError."""
    if limit() < TOOL_MIN:
        raise SettingError(f"open files: {limit()} are allowed, and this needs {TOOL_MIN}; {REMEDY}")


REMEDY: Final = "raise the limit (LimitNOFILE= of the unit, `ulimit -n`)"
