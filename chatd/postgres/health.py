"""Whether PostgreSQL serves this node, and if not, why: for the log, /readyz and a metric. Pure.

    failed(part, error) ──► parts that fail ──► `reason`: a sentence; `kind`: a stable word (faults.KINDS)
    ok(part) ───────────────┘

An outage is one line in the log at its start and one at its end, however many statements fail in
between. A query to which the database answers with an error is a part of its own: that others are
served does not say that this one is. The watch (postgres/watch.py) looks once a second and is right
about what can be seen by reading. What only a write shows is reported by who writes: it counts for
`STALE_S` after the last failure, as an idle node has nobody to report that it is over. After a full
disk the watch tries to write by itself (`lacks_disk`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from chatd.postgres import faults

log = structlog.get_logger("database")

STALE_S: Final = 3.0


class Trouble(NamedTuple):
    """A part that fails: since when (s, monotonic), when it failed last, why."""

    part: str
    since: float
    last: float
    kind: str
    sentence: str


class Health:
    """`now`: seconds, monotonic."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        # Those that fail now. Who was served looks here before it says so: that is on the path of a
        # message.
        self.parts: dict[str, Trouble] = {}
        # Commits that hang, set by the owner: until a batch is committed, or those are decided,
        # what failed before is not over however old it is.
        self.is_settling: Callable[[], bool] = lambda: False
        self._logged_at: float | None = None
        self.counts: dict[str, int] = {}  # failures by kind

    @property
    def trouble(self) -> Trouble | None:
        """What keeps the node from serving; the watch's word first."""
        now = self._now()
        for part in sorted(self.parts, key=lambda part: part != "watch"):
            trouble = self.parts[part]
            if part == "watch" or now - trouble.last < STALE_S or (part == "lanes" and self.is_settling()):
                return trouble
        return None

    @property
    def lacks_disk(self) -> bool:
        """A write failed for want of disk, and since then none was seen to succeed."""
        return any(trouble.kind == "disk-full" for trouble in self.parts.values())

    def failed(self, part: str, error: BaseException) -> None:
        """A statement of this part failed by an outage."""
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
        """A statement of this part was carried out."""
        over = self.parts.pop(part, None)
        # What reads failed by, too, is over, also for those that nobody asks for again soon
        if part == "watch" and over is not None:
            self.parts = {
                name: trouble for name, trouble in self.parts.items() if name == "lanes" or trouble.kind != over.kind
            }
        elif self.parts and self.trouble is None:
            self.parts.clear()
        if self._logged_at is not None and self.trouble is None:
            log.info("database.back", outage_s=round(self._now() - self._logged_at, 1))
            self._logged_at = None
