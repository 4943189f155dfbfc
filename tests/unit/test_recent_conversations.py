"""The order in which a user's conversations are shown, against one that is sorted anew for each
page.
"""

from __future__ import annotations

import random

import pytest

from chatd.core.recent_conversations import Place, Recent
from chatd.ids import ConvId


class Oracle:
    """The time of each conversation's last entry, by id; 0: it has none."""

    def __init__(self, ts: dict[int, int]) -> None:
        self.ts = ts

    def places(self) -> list[tuple[int, int]]:
        return [(ts, id) for id, ts in self.ts.items() if ts]

    def page(self, before: Place | None, most: int) -> list[tuple[int, int]]:
        return [one for one in sorted(self.places(), reverse=True) if before is None or one < before][:most]


@pytest.mark.parametrize("seed", range(20))
def test_pages_are_those_of_the_sorted_list_whatever_gets_a_new_entry(seed: int) -> None:
    """Several in one millisecond, and more often than the order is made anew."""
    rng = random.Random(seed)
    oracle = Oracle({n: rng.randrange(5) for n in range(1, 30)})
    recent, now = Recent(oracle.places()), 5
    for _ in range(300):
        now += rng.randrange(2)
        touched = rng.sample(list(oracle.ts), rng.randrange(4))
        if rng.random() < 0.05:
            touched.append(len(oracle.ts) + 1)
        for id in touched:
            oracle.ts[id] = recent.touched[ConvId(id)] = now
        before = None if rng.random() < 0.3 else Place(rng.randrange(now + 2), rng.randrange(40))
        most = rng.randrange(1, 8)
        assert recent.page(before, most) == oracle.page(before, most)
    assert len(recent._ts) <= 2 * len(oracle.ts) + 105, "stale places do not pile up"


def test_what_is_touched_while_the_order_is_read_is_not_lost() -> None:
    recent = Recent()
    recent.touched[ConvId(1)], recent.touched[ConvId(3)] = 9, 7  # the read saw 1 before, and 3 not at all
    recent.fill([(2, 1), (5, 2)])
    assert recent.page(None, 10) == [(9, 1), (7, 3), (5, 2)]


def test_pages_fit_together_while_nothing_happens() -> None:
    oracle = Oracle({n: n // 3 for n in range(1, 20)})
    recent, got, before = Recent(oracle.places()), list[tuple[int, int]](), None
    while page := recent.page(before, 4):
        got += page
        before = page[-1]
    assert got == oracle.page(None, 100)
