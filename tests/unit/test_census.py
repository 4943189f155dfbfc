"""Who counts as unheard."""

from __future__ import annotations

from chatd.postgres.census import Judge, Other, _signed, decode, key_of

A, B = Other(1, "a"), Other(2, "b")


def test_one_that_is_not_heard_counts_after_the_grace_and_not_before() -> None:
    judge = Judge(3.0)
    assert judge.unheard([A], frozenset(), 10.0) == []
    assert judge.unheard([A, B], frozenset(), 12.9) == []
    assert judge.unheard([A, B], frozenset(), 13.0) == [A]
    assert judge.unheard([A, B], frozenset({1}), 16.0) == [B]


def test_the_grace_begins_again_for_one_that_was_away_or_heard() -> None:
    judge = Judge(3.0)
    judge.unheard([A], frozenset(), 0.0)
    judge.unheard([], frozenset(), 1.0)
    assert judge.unheard([A], frozenset(), 3.5) == []
    judge.unheard([A], frozenset({1}), 4.0)
    assert judge.unheard([A], frozenset(), 7.0) == []


def test_while_redis_cannot_tell_nobody_is_judged() -> None:
    judge = Judge(3.0)
    judge.unheard([A], frozenset(), 0.0)
    assert judge.unheard([A], None, 5.0) == []
    assert judge.unheard([A], frozenset(), 6.0) == []


def test_keys_survive_the_way_through_postgresql() -> None:
    for boot in ("00000001ffffffff", "7fffffff00000000", "80000000aaaaaaaa", "ffffffff00000000"):
        key = key_of(boot)
        assert -(2**31) <= _signed(key) < 2**31
        assert _signed(key) % 2**32 == key
    assert decode([(7, "chatd watch web1:8080", "10.0.0.1"), (8, "", "local")]) == [
        Other(7, "web1:8080 at 10.0.0.1"),
        Other(8, "? at local"),
    ]
