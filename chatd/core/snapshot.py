"""A snapshot of PostgreSQL, and which transactions it sees. Pure.

    xmin:xmax:running,running,...      as `pg_current_snapshot()::text` gives it

A listing is read in a snapshot, and a conversation's row names the last transaction that changed
its log (`conversations.xid`). If the snapshot sees that transaction, the log had no later entry
when the listing was read: nothing was added since. That is how a node tells, of a conversation that
it does not hold, that its sessions have all of it (core/conversations.py).
"""

from __future__ import annotations

from typing import Final, NamedTuple

# Transactions whose ids a server may give out again after a crash (postgres/mark.py)
AGAIN: Final = 100_000


class Snapshot(NamedTuple):
    """`text`: as above. `started`: when the server was started, us since 1970."""

    text: str
    started: int

    def sees(self, xid: int, started: int) -> bool:
        """Whether a transaction that has committed by now was over in this snapshot.

        `started`: of the server that was asked for `xid`. If it was restarted since, ids near to
        those of the snapshot may stand for later transactions: they count as not seen.
        """
        xmin, xmax, running = self.text.split(":")
        if started != self.started:
            return xid < int(xmin) - AGAIN
        return xid < int(xmin) or (xid < int(xmax) and str(xid) not in running.split(","))

    @property
    def age(self) -> tuple[int, int, int]:
        """Of two snapshots of one server, the older one has the lesser `age`."""
        _, xmax, running = self.text.split(":")
        return self.started, int(xmax), -(running.count(",") + 1 if running else 0)
