"""What is kept of conversations that were let go, against a dict."""

from __future__ import annotations

import random

import pytest

from chatd.core.let_go import Delivered
from chatd.ids import ConvId


@pytest.mark.parametrize("seed", range(5))
def test_each_head_is_given_back_once(seed: int) -> None:
    rng, kept, oracle = random.Random(seed), Delivered(), dict[ConvId, int]()
    for _ in range(500):
        conv = ConvId(rng.randrange(1, 20))
        if conv not in oracle and rng.random() < 0.6:
            oracle[conv] = rng.randrange(1, 20)  # heads that are equal to ids
            kept.put(conv, oracle[conv])
        else:
            assert kept.take(conv) == oracle.pop(conv, None)
        assert len(kept) == len(oracle)
