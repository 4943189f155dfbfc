"""Own cursors: forward only, coalesced, and told again until the server has them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatd.client.cursors import Cursors, Due
from chatd.client.frames import ConversationItem


def item(c: str, head: int, delivered: int, read: int) -> ConversationItem:
    return ConversationItem(c, f"peer-{c}", head, 1, 0, delivered, read, 0, 0, 0, True)


def test_many_entries_make_one_request() -> None:
    cursors = Cursors()
    for seq in range(1, 50):
        cursors.ack("1", seq)
    assert cursors.due() == [Due("ack", "1", 49)]
    assert cursors.due() == []


def test_read_moves_delivered_along() -> None:
    cursors = Cursors()
    cursors.ack("1", 5)
    cursors.read("1", 7)
    assert cursors.due() == [Due("read", "1", 7)]
    cursors.ack("1", 9)
    assert cursors.due() == [Due("read", "1", 7), Due("ack", "1", 9)], "the first is not known to have arrived"
    cursors.known("1", 7, 7)
    cursors.ack("1", 10)
    assert cursors.due() == [Due("ack", "1", 10)]


def test_what_the_server_has_already_is_not_told() -> None:
    cursors = Cursors()
    cursors.known("1", 9, 9)
    cursors.ack("1", 5)
    cursors.read("1", 9)
    assert cursors.due() == []


def test_a_server_that_forgot_the_last_second_is_told_again() -> None:
    cursors = Cursors()
    cursors.read("1", 7)
    cursors.due()
    cursors.known("1", 7, 7)
    cursors.welcomed([item("1", 9, 7, 7)])
    assert cursors.due() == []
    cursors.welcomed([item("1", 9, 5, 3)])
    assert cursors.due() == [Due("read", "1", 7)]


def test_what_was_on_its_way_is_told_again_although_nothing_is_listed() -> None:
    cursors = Cursors()
    cursors.read("1", 7)
    cursors.due()
    cursors.welcomed([])
    assert cursors.due() == [Due("read", "1", 7)]


def test_a_refusal_for_now_is_told_again_and_one_for_good_is_not() -> None:
    cursors = Cursors()
    cursors.read("1", 7)
    cursors.due()
    cursors.again("1")
    assert cursors.due() == [Due("read", "1", 7)]
    cursors.refused("1")
    cursors.welcomed([])
    assert cursors.due() == []


def test_a_log_that_was_reset_takes_wishes_beyond_its_head_along() -> None:
    cursors = Cursors()
    cursors.read("1", 7)
    cursors.welcomed([item("1", 3, 3, 2)])
    assert cursors.due() == [Due("read", "1", 3)]


def test_only_what_is_not_known_to_have_arrived_is_saved() -> None:
    cursors = Cursors()
    cursors.read("1", 7)
    cursors.ack("2", 4)
    cursors.known("2", 4, 0)
    assert cursors.save() == {"1": [0, 7]}
    again = Cursors()
    again.restore(cursors.save())
    assert again.due() == [Due("read", "1", 7)]


@given(st.lists(st.tuples(st.sampled_from(["ack", "read", "known", "due"]), st.integers(1, 20)), max_size=40))
def test_what_is_told_only_rises_and_ends_at_the_furthest(steps: list[tuple[str, int]]) -> None:
    cursors = Cursors()
    told = {"ack": 0, "read": 0}
    wanted = {"ack": 0, "read": 0}
    for what, seq in [*steps, ("due", 0)]:
        if what == "due":
            for due in cursors.due():
                assert due.seq >= told[due.t]
                told[due.t] = due.seq
        elif what == "known":
            cursors.known("1", min(seq, max(told.values())), min(seq, told["read"]))
        else:
            getattr(cursors, what)("1", seq)
            wanted[what] = max(wanted[what], seq)
    assert told["read"] == wanted["read"]
    assert max(told.values()) == max(wanted.values())
