"""Which transactions a snapshot sees, against the rule of PostgreSQL's documentation."""

from __future__ import annotations

import itertools
import random

import pytest

from chatd.core.snapshot import AGAIN, Snapshot

STARTED = 1_790_000_000_000_000


@pytest.mark.parametrize("seed", range(10))
def test_it_sees_what_was_over(seed: int) -> None:
    rng = random.Random(seed)
    first, last = 1_000, 1_030
    running = sorted(rng.sample(range(first, last), rng.randrange(6)))
    xmin = running[0] if running else last
    snapshot = Snapshot(f"{xmin}:{last}:{','.join(map(str, running))}", STARTED)
    for xid in range(first - 5, last + 5):
        assert snapshot.sees(xid, STARTED) == (xid < last and xid not in running), xid


def test_ids_that_are_alike_are_not_taken_for_each_other() -> None:
    snapshot = Snapshot("11:120:11,112", STARTED)
    assert [xid for xid in (1, 2, 11, 12, 111, 112, 120) if not snapshot.sees(xid, STARTED)] == [11, 112, 120]


def test_after_a_restart_of_the_server_ids_that_it_may_give_out_again_are_not_seen() -> None:
    snapshot = Snapshot(f"{AGAIN + 50}:{AGAIN + 60}:", STARTED)
    assert snapshot.sees(50, STARTED)
    assert not snapshot.sees(50, STARTED + 1)
    assert snapshot.sees(49, STARTED + 1)


def test_the_older_one_is_known() -> None:
    """Of the same server, in the order in which they were taken: 100 and 101 begin, 100 ends."""
    texts = ["100:100:", "100:102:100,101", "101:102:101", "102:102:", "102:103:102"]
    snapshots = [Snapshot(text, STARTED) for text in texts]
    assert [a.age < b.age for a, b in itertools.pairwise(snapshots)] == [True] * 4
    assert Snapshot("9:9:", STARTED + 1).age > snapshots[-1].age
