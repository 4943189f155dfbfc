"""Which conversations a node asks the change feed for: every one that is held, and few others."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from chatd.core import feed_filter
from chatd.core.conversations import Registry
from chatd.core.feed_filter import BITS_EACH, BITS_MAX, BITS_MIN, NO_FILTER, FeedFilter
from chatd.ids import ConvId, UserId


def passes(bits: bytes, conv: int) -> bool:
    """As PostgreSQL's get_bit reads them (sql/queries/feed_since.sql)."""
    at = conv % (len(bits) * 8)
    return bool(bits[at // 8] >> at % 8 & 1)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 2**40)), max_size=200))
def test_what_is_held_always_passes(steps: list[tuple[bool, int]]) -> None:
    held: dict[ConvId, None] = {}
    wanted = FeedFilter(held)
    for comes, conv in steps:
        if comes and conv not in held:
            held[ConvId(conv)] = None
            wanted.add(ConvId(conv))
        elif held and not comes:
            held.pop(random.Random(conv).choice(list(held)))
        bits = wanted.begin()
        assert all(passes(bits, one) for one in held)
        wanted.end()


def test_of_what_is_not_held_few_pass_however_long_the_node_runs() -> None:
    held: dict[ConvId, None] = {}
    wanted = FeedFilter(held)
    rng = random.Random(1)
    for _ in range(20_000):
        conv = ConvId(rng.randrange(10**9))
        held[conv] = None
        wanted.add(conv)
        if len(held) > 1_000:
            del held[next(iter(held))]
        if rng.random() < 0.01:
            wanted.begin()
    bits = wanted.begin()
    strangers = range(10**10, 10**10 + 10_000)
    # The bits of 1,000 held, and of as many as were dropped since the bits were made
    assert len(bits) * 8 <= 4 * BITS_EACH * len(held)
    assert sum(passes(bits, conv) for conv in strangers) / len(strangers) < 4 / BITS_EACH


def test_a_node_that_holds_nothing_asks_for_nothing_and_one_that_holds_too_much_for_all() -> None:
    assert FeedFilter({}).begin() == bytes(BITS_MIN // 8)
    many = range(BITS_MAX // BITS_EACH + 1)
    wanted = FeedFilter([])
    wanted._held = many  # type: ignore[assignment]
    assert wanted.begin() == NO_FILTER
    assert feed_filter.NO_FILTER == b""


def test_what_is_held_between_question_and_answer_is_given_by_the_answer() -> None:
    registry = Registry()
    wanted = FeedFilter(registry.convs)
    registry.on_hold = wanted.add
    registry.hold(ConvId(1), UserId("alice"), UserId("bob"))
    bits = wanted.begin()
    registry.hold(ConvId(2), UserId("alice"), UserId("carol"))
    registry.hold(ConvId(1), UserId("alice"), UserId("bob"))
    assert passes(bits, 1)
    assert not passes(bits, 2)
    assert wanted.end() == [2]
    registry.hold(ConvId(3), UserId("alice"), UserId("dan"))
    assert passes(wanted.begin(), 3)
    assert wanted.end() == []
