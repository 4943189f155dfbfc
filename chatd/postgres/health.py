"""Whether PostgreSQL serves this node, and if not, why: for the log, /readyz and a metric. Pure.

    failed(part, error) ─┬─► parts that fail ──► `trouble`: a sentence, and a kind (faults.KINDS)
    ok(part) ────────────┘

An outage is one line in the log at its start and one at its end, however many statements fail in
between. A query to which the database answers with an error is a part of its own: success of others
does not show that this one works.

The watch (postgres/watch.py) looks once a second and is right about what reading can show. A
failure that only a write shows is reported by the writer. It counts for `STALE_S` after the last
failure, because an idle node makes no write that could report its end. After a full disk the watch
itself tries to write (`lacks_disk`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from chatd.postgres import faults

log = structlog.get_logger("database")

STALE_S: Final = 3.0


class Trouble(NamedTuple):
    """A part that fails. `since`: first failure, `last`: latest failure (s, monotonic)."""

    part: str
    since: float
    last: float
    kind: str
    sentence: str


class Health:
    """`now`: seconds, monotonic."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        # Parts that fail now. A caller whose statement succeeded looks here before it calls `ok`:
        # that is on the path of a message.
        self.parts: dict[str, Trouble] = {}
        # Set by the owner: some batch has an unknown outcome. Until a batch is committed, or all
        # outcomes are known, an earlier failure of the lanes counts, however old it is.
        self.is_settling: Callable[[], bool] = lambda: False
        self._logged_at: float | None = None
        self.counts: dict[str, int] = {}  # failures by kind

    @property
    def trouble(self) -> Trouble | None:
        """Why the node cannot serve; what the watch found comes first."""
        now = self._now()
        for part in sorted(self.parts, key=lambda part: part != "watch"):
            trouble = self.parts[part]
            if part == "watch" or now - trouble.last < STALE_S or (part == "lanes" and self.is_settling()):
                return trouble
        return None

    @property
    def lacks_disk(self) -> bool:
        """A write failed for lack of disk space, and no write has succeeded since."""
        return any(trouble.kind == "disk-full" for trouble in self.parts.values())

    def failed(self, part: str, error: BaseException) -> None:
        """A statement of this part failed because of an outage."""
        now = self._now()
        kind, sentence = faults.kind(error), faults.sentence(error)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        old = self.parts.get(part)
        self.parts[part] = Trouble(part, now if old is None else old.since, now, kind, sentence)
        if self._logged_at is None:
            self._logged_at = now
            log.error("database.outage", part=part, kind=kind, reason=sentence)
        elif old is None or old.kind != kind:
            log.warning("database.outage_goes_on", part=part, kind=kind, reason=sentence)

    def ok(self, part: str) -> None:
        """A statement of this part succeeded."""
        over = self.parts.pop(part, None)
        # The same failure of reads is over, too, also for queries that are not repeated soon
        if part == "watch" and over is not None:
            self.parts = {
                name: trouble for name, trouble in self.parts.items() if name == "lanes" or trouble.kind != over.kind
            }
        elif self.parts and self.trouble is None:
            self.parts.clear()
        if self._logged_at is not None and self.trouble is None:
            log.info("database.back", outage_s=round(self._now() - self._logged_at, 1))
            self._logged_at = None
