"""What nobody has used for a round is found, and nothing else."""

from __future__ import annotations

import pytest

from chatd.core.conversation import Conversation
from chatd.core.unused import ROUND_LOOKS, Unused
from chatd.ids import ConvId, UserId

N = 120


def make(n: int = N) -> dict[ConvId, Conversation]:
    return {ConvId(k): Conversation(ConvId(k), UserId("a"), UserId(f"b{k}")) for k in range(n)}


def test_what_is_used_in_each_round_stays_and_the_rest_goes_within_two() -> None:
    held, unused = make(), Unused()
    busy = {ConvId(n) for n in range(0, N, 7)}
    gone: dict[ConvId, int] = {}
    for look in range(3 * ROUND_LOOKS):
        for id in busy:
            held[id].is_used = True
        for conv in list(unused.look(held)):
            gone[conv.id] = look
            del held[conv.id]
    assert set(gone) == {ConvId(n) for n in range(N)} - busy
    assert min(gone.values()) >= ROUND_LOOKS, "each has a whole round"
    assert max(gone.values()) < 2 * ROUND_LOOKS


@pytest.mark.parametrize("n", [0, 1, 59, 61, 1_000])
def test_a_round_takes_a_minute_however_many_there_are(n: int) -> None:
    held, unused = make(n), Unused()
    parts = []
    for _ in range(ROUND_LOOKS):
        before = sum(conv.is_used for conv in held.values())
        assert list(unused.look(held)) == []
        parts.append(before - sum(conv.is_used for conv in held.values()))
    assert sum(parts) == n
    assert max(parts) - min(parts) <= 1


def test_an_object_that_is_no_longer_held_is_passed_over() -> None:
    held, unused = make(), Unused()
    list(unused.look(held))
    for id in list(held):
        held[id] = Conversation(id, UserId("a"), UserId("c"))  # dropped, and loaded anew
    for _ in range(ROUND_LOOKS - 1):
        assert list(unused.look(held)) == []
    assert all(conv.is_used for conv in held.values())
