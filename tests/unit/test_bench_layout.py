"""Which user is at which node: the share of the pairs that cross is what was asked for."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import layout
from bench.scenarios import fanout

PAIRS = st.integers(1, 300)
NODES = st.integers(1, layout.NODES_MAX)
CROSS = st.floats(0, 1)


@given(PAIRS, NODES, CROSS)
def test_the_share_of_the_pairs_that_cross_is_what_was_asked(n: int, nodes: int, cross: float) -> None:
    at = layout.pairs(n, nodes, cross)
    assert len(at) == 2 * n
    assert set(at) <= set(range(nodes))
    crossing = sum(at[u] != at[u + 1] for u in range(0, 2 * n, 2))
    assert crossing == (round(n * cross) if nodes > 1 else 0)


@given(PAIRS, NODES, CROSS)
def test_the_nodes_have_equally_many_users(n: int, nodes: int, cross: float) -> None:
    held = Counter(layout.pairs(n, nodes, cross))
    assert max(held[i] for i in range(nodes)) - min(held[i] for i in range(nodes)) <= 4


def test_all_pairs_of_nodes_have_as_many_that_cross() -> None:
    at = layout.pairs(2 * 4 * 3, 4, 1.0)
    assert set(Counter((at[u], at[u + 1]) for u in range(0, len(at), 2)).values()) == {2}


@given(st.integers(20, 300), st.integers(2, 8))
def test_half_of_every_part_crosses_and_not_one_half(n: int, nodes: int) -> None:
    at = layout.pairs(n, nodes, 0.5)
    crosses = [at[u] != at[u + 1] for u in range(0, 2 * n, 2)]
    assert all(sum(crosses[i : i + 10]) in (4, 5, 6) for i in range(n - 10))


@pytest.mark.parametrize("wrong", ["", "0", "2,2", "1,x", "33", "-1", "1,,2", "1.5"])
def test_what_is_no_list_of_nodes_is_refused(wrong: str) -> None:
    assert layout.nodes("1,2,8") == [1, 2, 8]
    with pytest.raises(ArgumentTypeError, match=r"N\[,N...\]"):
        layout.nodes(wrong)


@pytest.mark.parametrize("wrong", ["", "x", "-0.1", "1.1", "nan", "inf"])
def test_what_is_no_share_is_refused(wrong: str) -> None:
    assert [layout.share(text) for text in ("0", "0.5", "1")] == [0.0, 0.5, 1.0]
    with pytest.raises(ArgumentTypeError, match="from 0 to 1"):
        layout.share(wrong)


@pytest.mark.parametrize(("of", "ratio"), [(150.0, 1.5), (None, None), (0.0, None)])
def test_the_ratio_is_to_the_first_of_the_list(of: float | None, ratio: float | None) -> None:
    figures = {"n2_cpu_us_per_msg": 100.0, "n8_cpu_us_per_msg": of}
    assert fanout.ratios(figures, [2, 8]) == {"n8_to_n2": ratio}
    assert fanout.ratios(figures, [2]) == {}
