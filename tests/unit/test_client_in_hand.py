"""Entries given and not handled: where a restart goes on, in whatever order handlers end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatd.client import in_hand as in_hand_module
from chatd.client.frames import ConversationItem, Entry, Limits, Page, Welcome
from chatd.client.in_hand import InHand, Mark
from chatd.client.inbox import Inbox


def entry(seq: int, epoch: str = "e", peer: str = "bob") -> Entry:
    return Entry("1", peer, seq, 1_000 + seq, False, "message", "hi", epoch=epoch)


def mark(seq: int) -> Mark:
    return Mark(seq, 1_000 + seq if seq else 0, is_new=False)


@given(st.permutations(range(1, 9)))
def test_a_restart_goes_on_before_the_first_that_is_not_done(order: list[int]) -> None:
    hand = InHand()
    for seq in range(1, 9):
        hand.gave(entry(seq), mark(seq - 1))
    done = set[int]()
    for seq in order:
        first = min(set(range(1, 9)) - done)
        assert hand.first("bob") == mark(first - 1)
        assert hand.done(entry(seq))
        assert not hand.done(entry(seq)), "once"
        done.add(seq)
    assert (hand.first("bob"), hand.size) == (None, 0)


def test_done_of_another_log_counts_for_nothing() -> None:
    hand = InHand()
    hand.gave(entry(5, "e2"), mark(4))
    assert not hand.done(entry(5, "e1"))
    assert hand.first("bob") == mark(4)
    assert hand.first("bob", entry(5)) is None, "but this one"
    hand.drop_after("bob", 4)
    assert (hand.first("bob"), hand.size) == (None, 0)
    hand.drop_after("nobody", 0)


def test_only_so_many_are_given() -> None:
    hand = InHand()
    for seq in range(1, in_hand_module.IN_HAND_MAX + 1):
        assert not hand.full
        hand.gave(entry(seq), mark(seq - 1))
    assert hand.full
    hand.keep({"carol"})
    assert not hand.full


def welcome(epoch: str, head: int) -> Welcome:
    item = ConversationItem("1", "bob", head, 1, 1_000 + head, 0, 0, 0, 0, 0, True)
    return Welcome("me", epoch, 0, None, Limits(), (item,), (), "s")


def test_what_is_in_hand_comes_again_after_a_restart_in_another_log_too() -> None:
    inbox = Inbox()
    inbox.enter(welcome("e1", 0))
    for seq in range(1, 6):
        inbox.push(entry(seq, "e1"))
    given = [inbox.take_any(in_hand=True) for _ in range(5)]
    for one in (given[0], given[1], given[3]):
        assert isinstance(one, Entry)
        assert inbox.in_hand.done(one)
    assert inbox.save()["places"]["1"][1] == 2
    inbox.hello(10_000)
    inbox.enter(welcome("e2", 6))  # the new log has the first four, and two others behind them
    restarted = Inbox()
    restarted.restore(inbox.save())
    assert restarted.places["1"].seq <= 2, "nothing that is not done is passed over while it is not known"
    page = Page("1", tuple(entry(seq, "e2") if seq < 5 else other(seq) for seq in range(1, 7)), False, 6, 1)
    want = inbox.want()
    assert want is not None
    after = Page("1", tuple(e for e in page.entries if e.seq > want[1]), False, 6, 1)
    inbox.fetched(want[1], after)
    assert inbox.save()["places"]["1"][1] == 2, "3 is in both logs and not done; 5 is gone"
    assert isinstance(given[2], Entry)
    inbox.in_hand.done(given[2])
    assert inbox.in_hand.size == 0
    assert [e.seq for e in iter(inbox.take, None)] == [5, 6]


def other(seq: int) -> Entry:
    return Entry("1", "bob", seq, 9_000 + seq, False, "message", "other", epoch="e2")
