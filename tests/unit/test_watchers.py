"""Who watches whom: the first and the last watcher of a user are reported."""

from __future__ import annotations

from chatd.core.watchers import WatchChange, Watchers
from chatd.ids import UserId

ANN, BOB = UserId("ann"), UserId("bob")


def test_the_first_and_the_last_watcher_of_a_user_are_reported() -> None:
    watchers = Watchers()
    assert watchers.replace("w1", (), (ANN, BOB, ANN)) == WatchChange([ANN, BOB], [])
    assert watchers.replace("w2", (), (ANN,)) == WatchChange([], [])
    assert set(watchers.of(ANN)) == {"w1", "w2"}
    assert watchers.replace("w1", (ANN, BOB), ()) == WatchChange([], [BOB])
    assert BOB not in watchers
    assert watchers.replace("w2", (ANN,), (ANN,)) == WatchChange([], []), "watched before and after"
    assert set(watchers.of(ANN)) == {"w2"}
    assert watchers.replace("w2", (ANN,), (BOB,)) == WatchChange([BOB], [ANN])
    assert list(watchers.users()) == [BOB]


def test_a_watcher_that_was_not_there_leaves_nothing() -> None:
    watchers = Watchers()
    assert watchers.replace("w1", (ANN,), ()) == WatchChange([], [])
    assert len(watchers) == 0
    assert list(watchers.of(ANN)) == []
