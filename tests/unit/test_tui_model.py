"""What the terminal knows, from what the SDK says in any order."""

from __future__ import annotations

import pytest

from chatd.client import (
    ConversationItem,
    Entry,
    Kind,
    Line,
    Message,
    Notice,
    Page,
    Presence,
    Receipt,
    Reset,
    Sent,
    Typing,
    Unsent,
)
from chatd.tui.model import KEPT_MAX, TYPING_S, ConversationView, Model, Progress


def entry(seq: int, body: str | None = "hi", *, own: bool = False, kind: Kind = "message", ref: int | None = None,
          rev: int | None = None, edited: int | None = None, peer: str = "bob") -> Entry:  # fmt: skip
    return Entry("12", peer, seq, seq * 1_000, own, kind, body, ref, rev, edited)


def item(head: int, *, peer: str = "bob", unread: int = 0, read: int = 0, c: str = "12", floor: int = 1,
         delivered: int = 0, peer_read: int = 0) -> ConversationItem:  # fmt: skip
    return ConversationItem(c, peer, head, floor, head * 1_000, delivered, read, delivered, peer_read, unread, True)


def page(*entries: Entry, more: bool = False, head: int = 0, floor: int = 1) -> Page:
    return Page("12", entries, more, head or max((e.seq for e in entries), default=0), floor)


def seqs(it: ConversationView) -> list[int]:
    return [message.seq for message in it.log]


def message(it: ConversationView, seq: int) -> Message:
    found = it.log.get(seq)
    assert found is not None
    return found


def texts(it: ConversationView) -> list[str | None]:
    return [message.body for message in it.log]


@pytest.fixture
def model() -> Model:
    model = Model()
    model.user = "me"
    return model


def test_a_message_is_there_once_whatever_brings_it(model: Model) -> None:
    it = model.open("bob")
    model.entry(entry(2))
    model.page("bob", page(entry(1), entry(2)))
    model.entry(entry(2))
    model.sent(model.going("bob", "message", "mine", None, 0), Sent("12", 3, 3_000))
    model.entry(entry(3, "mine", own=True))
    assert texts(it) == ["hi", "hi", "mine"]
    assert it.outgoing == []


def test_a_change_counts_by_the_highest_rev(model: Model) -> None:
    it = model.open("bob")
    model.entry(entry(1, "one"))
    model.entry(entry(3, "three", kind="edit", ref=1))
    model.entry(entry(2, "two", kind="edit", ref=1))
    model.page("bob", page(entry(1, "one"), entry(2, None, kind="edit", ref=1)))
    assert texts(it) == ["three"]
    assert message(it, 1).edited
    model.page("bob", page(entry(1, None, rev=4), entry(4, None, kind="delete", ref=1)))
    model.entry(entry(3, "three", kind="edit", ref=1))
    assert texts(it) == [None]


def test_an_edit_of_what_is_not_loaded_is_in_the_page_that_brings_it(model: Model) -> None:
    it = model.open("bob")
    model.entry(entry(9, "later", kind="edit", ref=1))
    model.page("bob", page(entry(1, "later", rev=9, edited=9), entry(9, None, kind="edit", ref=1)))
    assert texts(it) == ["later"]


def test_an_edit_that_comes_before_its_message_is_not_lost(model: Model) -> None:
    it = model.open("bob")
    model.entry(entry(9, "later", kind="edit", ref=1))
    model.page("bob", page(entry(1, "first")))  # asked for before the edit
    assert texts(it) == ["later"]


def test_older_pages_are_asked_for_below_what_is_loaded_until_there_are_none(model: Model) -> None:
    it = model.open("bob")
    assert not it.has_older, "nothing is loaded yet"
    model.page("bob", page(entry(51), entry(52), more=True))
    assert (it.lowest, it.has_older) == (51, True)
    model.page("bob", page(entry(49, kind="edit", ref=48), entry(50), more=True))
    assert (it.lowest, it.has_older) == (49, True)
    model.page("bob", page(entry(7), entry(48), head=52, floor=7))
    assert (it.lowest, it.has_older) == (7, False)


def test_what_arrived_before_it_was_opened_is_one_run_with_the_newest_page(model: Model) -> None:
    model.listed([item(10)])
    for seq in range(11, 14):
        model.entry(entry(seq))
    it = model.open("bob")
    model.page("bob", page(entry(12), entry(13), more=True))
    assert (seqs(it), it.lowest, it.has_older) == ([11, 12, 13], 11, True)


def test_unread_counts_messages_of_others_that_were_not_seen(model: Model) -> None:
    model.entry(entry(5))  # before the list is there, which counts it, too
    model.listed([item(5, unread=2, read=3)])
    it = model.conversation("bob")
    assert it.unread == 2
    model.entry(entry(6))
    model.entry(entry(7, own=True))
    model.entry(entry(8, kind="edit", ref=6))
    model.entry(entry(6))
    assert (it.unread, model.unread) == (3, 3)
    model.seen("bob", 8)
    assert it.unread == 0
    model.listed([item(5, unread=2, read=3)])
    assert it.unread == 0, "a list that was made before it was read"


def test_an_own_receipt_is_that_of_another_device(model: Model) -> None:
    model.listed([item(5, unread=5)])
    model.event(Receipt("12", "bob", "me", 5, 5), 0)
    assert model.unread == 0


def test_how_far_an_own_message_has_got(model: Model) -> None:
    it = model.open("bob")
    model.entry(entry(4, own=True))
    own = message(it, 4)
    assert it.progress(own) is Progress.SENT
    model.event(Receipt("12", "bob", "bob", 4, 3), 0)
    assert it.progress(own) is Progress.DELIVERED
    model.event(Receipt("12", "bob", "bob", 4, 4), 0)
    model.event(Receipt("12", "bob", "bob", 2, 1), 0)
    assert it.progress(own) is Progress.READ


def test_notes_to_oneself_are_read_by_their_writer(model: Model) -> None:
    it = model.open("me")
    model.entry(entry(1, own=True, peer="me"))
    model.event(Receipt("12", "me", "me", 1, 1), 0)
    assert it.progress(message(it, 1)) is Progress.READ


def test_typing_ends_by_time_and_by_an_entry(model: Model) -> None:
    model.listed([item(1)])
    model.event(Typing("12", "bob"), 10.0)
    assert model.is_typing("bob", 10.0 + TYPING_S - 0.1)
    assert not model.is_typing("bob", 10.0 + TYPING_S)
    model.event(Typing("12", "bob"), 10.0)
    model.entry(entry(2))
    assert not model.is_typing("bob", 10.0)
    model.event(Typing("99", "zed"), 10.0)
    assert "zed" not in model.conversations


def test_the_list_has_the_latest_first_and_new_ones_on_top(model: Model) -> None:
    model.listed([item(5, peer="bob"), item(9, peer="carol", c="13")])
    model.open("zed")
    assert [it.peer for it in model.listing()] == ["zed", "carol", "bob"]
    model.entry(entry(10))
    assert [it.peer for it in model.listing()] == ["zed", "bob", "carol"]


def test_another_log_keeps_only_what_waits_to_be_sent(model: Model) -> None:
    it = model.open("bob")
    model.page("bob", page(entry(1)))
    waits = model.going("bob", "message", "later", None, 0)
    model.event(Reset(None, None), 0)
    assert (seqs(it), it.head, it.loaded, it.outgoing) == ([], 0, False, [waits])


def test_a_reset_of_one_conversation_leaves_the_others(model: Model) -> None:
    model.entry(entry(1))
    model.entry(entry(1, peer="carol"))
    model.event(Reset("12", "bob"), 0)
    assert (seqs(model.conversation("bob")), seqs(model.conversation("carol"))) == ([], [1])


def test_what_is_not_open_is_bounded(model: Model) -> None:
    for seq in range(1, 3 * KEPT_MAX):
        model.entry(entry(seq))
    it = model.conversation("bob")
    assert len(it.log) <= 2 * KEPT_MAX
    it = model.open("bob")
    model.open("carol")
    assert len(it.log) == KEPT_MAX
    assert it.lowest == seqs(it)[0]


def test_the_first_unread_message_is_marked_when_it_is_opened(model: Model) -> None:
    model.listed([item(9, unread=2, read=7)])
    assert model.open("bob").mark == 7
    model.seen("bob", 9)
    assert model.open("bob").mark == 7, "it is open already"


def test_presence_notices_and_refusals_are_kept_for_the_person(model: Model) -> None:
    model.event(Presence("bob", "away", 3), 0)
    model.event(Notice("drain", 100), 0)
    model.event(Unsent("bob", "x", "message", "hi", None, "refused", ""), 0)
    assert model.presence["bob"].state == "away"
    assert len(model.notes) == 2


def test_a_conversation_that_is_not_there_yet_is_empty_and_loaded(model: Model) -> None:
    model.open("zed")
    model.nothing_there("zed")
    it = model.conversation("zed")
    assert (it.loaded, it.has_older) == (True, False)


def test_the_line_is_as_the_sdk_says_and_its_end_has_a_reason(model: Model) -> None:
    model.event(Line("online"), 0)
    model.event(Line("offline", "lost", 1.0), 0)
    assert model.line == "offline"
    model.ended("replaced")
    model.event(Line("stopped", "closed"), 0)
    assert (model.line, model.reason) == ("stopped", "replaced")
