"""One outage is one line at its start and one at its end; what only a write shows counts for a
while.
"""

from __future__ import annotations

import psycopg
import pytest
from structlog.testing import capture_logs

from chatd.postgres.health import STALE_S, Health

FULL = psycopg.errors.lookup("53100")("no space left on device")
AWAY = OSError("connection refused")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


def test_an_outage_is_a_line_at_its_start_and_one_at_its_end(health: Health, clock: Clock) -> None:
    with capture_logs() as logs:
        for _ in range(3):
            health.failed("watch", AWAY)
            clock.now += 1
        health.failed("watch", FULL)
        health.ok("watch")
        health.ok("watch")
    events = [(entry["event"], entry.get("kind")) for entry in logs]
    assert events == [("database.outage", "away"), ("database.outage_goes_on", "disk-full"), ("database.back", None)]
    assert logs[-1]["outage_s"] == 3.0
    assert health.counts == {"away": 3, "disk-full": 1}


def test_what_a_write_alone_shows_counts_until_it_is_old(health: Health, clock: Clock) -> None:
    health.failed("lanes", FULL)
    assert health.trouble is not None
    assert (health.trouble.part, health.trouble.kind, health.lacks_disk) == ("lanes", "disk-full", True)
    clock.now += STALE_S
    assert [health.trouble] == [None]
    assert health.lacks_disk, "nobody has written since"
    health.ok("lanes")
    assert not health.lacks_disk


def test_while_commits_hang_a_lanes_failure_stays(health: Health, clock: Clock) -> None:
    health.failed("lanes", TimeoutError())
    health.is_settling = lambda: True
    clock.now += 10 * STALE_S
    was = health.trouble
    health.is_settling = lambda: False
    assert (was is not None, health.trouble) == (True, None)


def test_the_watchs_word_comes_first_and_ends_what_reads_failed_by(health: Health) -> None:
    health.failed("read", AWAY)
    health.failed("lanes", AWAY)
    health.failed("watch", AWAY)
    assert health.trouble is not None
    assert health.trouble.part == "watch"
    health.ok("watch")
    assert set(health.parts) == {"lanes"}, "what lanes say is theirs to take back"


def test_a_part_fails_since_it_failed_first(health: Health, clock: Clock) -> None:
    health.failed("watch", AWAY)
    clock.now += 5
    health.failed("watch", AWAY)
    trouble = health.parts["watch"]
    assert (trouble.since, trouble.last) == (100.0, 105.0)
