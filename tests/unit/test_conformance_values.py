"""Values of vectors: what is sent for each, and what matches (docs/conformance.md)."""

from __future__ import annotations

from typing import Final

import pytest

from chatd.conformance.values import Mismatch, Values, spread

MADE: Final[list[tuple[object, object]]] = [
    ("x", "x"),
    (1, 1),
    (None, None),
    ({"$literal": "@x"}, "@x"),
    ({"$add": [1, 2, 3]}, 6),
    ({"$concat": ["a", "b"]}, "ab"),
    ({"$repeat": ["é", 3]}, "ééé"),
    ({"$times": ["x", 3]}, ["x", "x", "x"]),
    ({"$keys": 2}, {"1": 0, "2": 0}),
    ({"$object": [["a", 5]]}, {"a": 5}),
    ([{"$spread": [1, 2]}, 3], [1, 2, 3]),
    ({"$token": {"user": "bob", "ttl_s": 5}}, "bob {'ttl_s': 5}"),
]

MATCH: Final[list[tuple[object, object, object]]] = [  # a pattern, what it matches, what it does not
    ("x", "x", "y"),
    (1, 1, True),
    (1, 1, 1.0),
    (None, None, 0),
    ("*", None, ...),
    ("*int", 0, True),
    ("*str", "x", ""),
    ("*true", True, 1),
    ({"a": 1}, {"a": 1, "b": 2}, {"b": 2}),
    ({"a": "!"}, {"b": 2}, {"a": None}),
    ([1, "*"], [1, 2], [1]),
    ({"$below": 5}, 4, 5),
    ({"$above": 5}, 6, 5),
    ({"$above": 5}, 6, "6"),
    ({"$one_of": [1, "x"]}, "x", 2),
    ({"a": 1}, {"a": 1}, [1]),
]


@pytest.mark.parametrize(("value", "made"), MADE)
def test_what_is_sent_for_a_value(value: object, made: object) -> None:
    assert Values(lambda user, options: f"{user} {options}").made(value) == made


@pytest.mark.parametrize(("pattern", "good", "bad"), MATCH)
def test_what_a_pattern_matches(pattern: object, good: object, bad: object) -> None:
    values = Values()
    values.match(pattern, good)
    if bad is not ...:
        with pytest.raises(Mismatch):
            values.match(pattern, bad)


def test_users_and_cids_are_fresh_in_each_run_and_the_same_within() -> None:
    one, other = Values(), Values()
    for name in ("@alice", "#1"):
        assert one.made(name) == one.made(name) != other.made(name)
    assert str(one.made("@alice")).startswith("alice-")


def test_a_name_keeps_the_first_value_that_it_matched() -> None:
    values = Values()
    values.match({"c": "$c"}, {"c": "12"})
    assert values.made({"c": "$c"}) == {"c": "12"}
    with pytest.raises(Mismatch):
        values.match("$c", "13")


def test_in_vectors_for_clients_only_stored_names_are_special() -> None:
    values = Values(is_plain=True)
    assert values.made(["@alice", "#1", "$x"]) == ["@alice", "#1", "$x"]
    values.match("$x", 7)
    assert values.made("$x") == 7


def test_lists_lay_out_what_is_spread() -> None:
    assert spread([1, {"$spread": {"$times": ["x", 2]}}, {"$spread": ["y"]}]) == [1, "x", "x", "y"]


def test_a_word_that_does_not_exist_is_an_error_of_the_vector() -> None:
    with pytest.raises(ValueError, match=r"\$nonsense"):
        Values().made({"$nonsense": 1})
