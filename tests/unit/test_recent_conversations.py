"""The order in which a user's conversations are shown, against one that is sorted anew for each
page.
"""

from __future__ import annotations

import random

import pytest

from chatd.core.conversation import Conversation
from chatd.core.recent_conversations import Place, Recent
from chatd.ids import ConvId, UserId

ALICE = UserId("alice")


def conversation(n: int, ts: int) -> Conversation:
    conv = Conversation(ConvId(n), ALICE, UserId(f"p{n}"))
    conv.head, conv.ts = int(ts > 0), ts
    return conv


class Oracle:
    def __init__(self, convs: list[Conversation]) -> None:
        self.convs = {conv.id: conv for conv in convs}
        self.mine = {conv.b: conv for conv in convs}

    def page(self, before: Place | None, most: int) -> list[ConvId]:
        order = sorted(((conv.ts, conv.id) for conv in self.convs.values() if conv.head), reverse=True)
        return [id for ts, id in order if before is None or (ts, id) < before][:most]


@pytest.mark.parametrize("seed", range(20))
def test_pages_are_those_of_the_sorted_list_whatever_gets_a_new_entry(seed: int) -> None:
    """Several in one millisecond, and more often than the order is made anew."""
    rng = random.Random(seed)
    oracle = Oracle([conversation(n, rng.randrange(5)) for n in range(1, 30)])
    recent, now = Recent(oracle.mine.values()), 5
    for _ in range(300):
        now += rng.randrange(2)
        for conv in rng.sample(list(oracle.convs.values()), rng.randrange(4)):
            conv.head, conv.ts = conv.head + 1, now
            recent.touched.add(conv)
        if rng.random() < 0.05:
            new = conversation(len(oracle.convs) + 1, now)
            oracle.convs[new.id] = oracle.mine[new.b] = new
            recent.touched.add(new)
        before = None if rng.random() < 0.3 else Place(rng.randrange(now + 2), rng.randrange(40))
        most = rng.randrange(1, 8)
        assert [conv.id for conv in recent.page(oracle.convs, oracle.mine, before, most)] == oracle.page(before, most)
    assert len(recent._ts) <= 2 * len(oracle.convs) + 105, "stale places do not pile up"


def test_pages_fit_together_while_nothing_happens() -> None:
    oracle = Oracle([conversation(n, n // 3) for n in range(1, 20)])
    recent, got, before = Recent(oracle.mine.values()), [], None
    while page := recent.page(oracle.convs, oracle.mine, before, 4):
        got += [conv.id for conv in page]
        before = Place(page[-1].ts, page[-1].id)
    assert got == oracle.page(None, 100)
