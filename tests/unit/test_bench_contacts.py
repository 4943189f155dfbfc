"""Who writes to whom: each user has as many others as were asked for, and each once."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.contacts import Contacts, Pairs


@st.composite
def contacts(draw: st.DrawFn) -> Contacts:
    users, each = draw(st.integers(2, 60)), draw(st.integers(1, 80))
    if each < users and users % 2:
        each += each % 2
    return Contacts(users, each)


@given(contacts())
def test_each_user_has_so_many_others_each_once(found: Contacts) -> None:
    for user in range(found.users):
        ends = list(found.ends(user))
        assert [found.owner[end] for end in ends] == [user] * found.each
        others = {found.owner[end ^ 1] for end in ends}
        assert len(others) == found.each
        assert user not in others


@given(contacts())
def test_no_two_have_two_conversations(found: Contacts) -> None:
    pairs = Counter(tuple(sorted(found.owner[2 * c : 2 * c + 2])) for c in range(found.conversations))
    assert set(pairs.values()) == {1}
    assert found.conversations == found.users * found.each // (1 if found.strangers else 2)


@given(contacts(), st.integers(0, 2**32))
def test_a_user_writes_from_an_end_of_its_own_and_to_all(found: Contacts, seed: int) -> None:
    rng = random.Random(seed)
    user = rng.randrange(found.users)
    assert found.end(user, rng) in set(found.ends(user))
    often = Contacts(12, 3)
    assert {often.end(5, rng) for _ in range(200)} == set(often.ends(5))


def test_more_contacts_than_users_are_strangers_who_never_come() -> None:
    found = Contacts(4, 5)
    assert (found.strangers, found.conversations, len(found.names)) == (5, 20, 9)
    assert {found.owner[end ^ 1] for end in found.ends(0)} == {4, 5, 6, 7, 8}
    assert Contacts(6, 5).strangers == 0


def test_another_process_finds_the_same_contacts() -> None:
    assert list(Contacts(100, 20).owner) == list(Contacts(100, 20).owner)
    assert list(Contacts(100, 20).owner) != list(Contacts(100, 20, seed=2).owner)


@pytest.mark.parametrize(("users", "each"), [(1, 1), (2, 0), (5, 3), (7, 1)])
def test_contacts_that_cannot_be_are_refused(users: int, each: int) -> None:
    with pytest.raises(ValueError, match="contacts:"):
        Contacts(users, each)


def test_the_ends_of_pairs_are_their_users() -> None:
    pairs = Pairs(6)
    assert [(list(pairs.ends(u)), pairs.owner[pairs.end(u, random.Random(1))]) for u in range(6)] == [
        ([u], u) for u in range(6)
    ]
