"""The mark `since` of a welcome: which changes of conversations a client has seen. Pure.

    xid.started.log    in hexadecimal; opaque to clients

xid: the oldest transaction that was running when the listing was made (`pg_snapshot_xmin`). What
that transaction or a later one changes is listed next time. Transaction ids mean something in one
cluster only, so the mark names its log, and is void in another: everything is listed.

started: when that server was started. After a crash it may reuse ids of transactions that were
never flushed to disk. A change by such an id can be older than the mark by number and newer in
truth. The ids of at most some 0.6 s are reused, the most that the WAL writer may be late (3 x
wal_writer_delay; PostgreSQL, Asynchronous Commit). So a mark of an earlier start counts as `AGAIN`
transactions older. Listing an unchanged conversation costs little; a change that is not listed is
lost to the client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from chatd.core.snapshot import Snapshot

AGAIN: Final = 100_000  # the same number is in list_changed.sql
LOG_CHARS: Final = 8  # of the epoch
CHARS_MAX: Final = 48


class Mark(NamedTuple):
    """The parts of a mark. `started`: us since 1970, by the server's clock."""

    xid: int
    started: int
    log: str

    def __str__(self) -> str:
        return f"{self.xid:x}.{self.started:x}.{self.log}"


def made(xid: int, started: int, epoch: str) -> Mark:
    """The mark of a listing."""
    return Mark(xid, started, epoch[:LOG_CHARS])


def of(snapshot: Snapshot, epoch: str) -> Mark:
    """The mark of what was listed in this snapshot: its oldest transaction that still runs."""
    return made(int(snapshot.text.partition(":")[0]), snapshot.started, epoch)


def since(mark: Mark, snapshot: Snapshot) -> int:
    """The first transaction whose changes a client with this mark lacks, in that snapshot.

    A mark of the future counts as none. The same is in list_changed.sql.
    """
    if mark.xid > int(snapshot.text.split(":")[1]):
        return 0
    return mark.xid if mark.started == snapshot.started else max(mark.xid - AGAIN, 0)


def of_all(epoch: str) -> Mark:
    """A mark that is older than every change: everything is listed."""
    return Mark(0, 0, epoch[:LOG_CHARS])


def read(text: str | None, epoch: str) -> Mark | None:
    """A client's mark; None if there is none, or it is malformed or of another log."""
    parts = (text or "").split(".")
    if len(parts) != 3 or len(text or "") > CHARS_MAX or parts[2] != epoch[:LOG_CHARS]:
        return None
    try:
        xid, started = int(parts[0], 16), int(parts[1], 16)
    except ValueError:
        return None
    return Mark(xid, started, parts[2]) if 0 <= xid < 2**63 and 0 <= started < 2**63 else None
