"""The model of a conversation's log, which judges random walks."""

from __future__ import annotations

import pytest

from chatd.conformance.log_model import Line, LogModel
from chatd.conformance.values import Frame, Mismatch

ANN, BEN = "ann", "ben"


def log(*lines: tuple[str, str, str | None, int]) -> LogModel:
    """Of (sender, kind, body, ref), with seqs 1, 2, 3 ..."""
    made = LogModel((ANN, BEN))
    for seq, (sender, kind, body, ref) in enumerate(lines, 1):
        made.add("12", Line(seq, 1000 + seq, sender, made.other(sender), kind, body, ref, f"cid{seq}"))
    return made


def entry(model: LogModel, seq: int, **keys: object) -> Frame:
    line = model.lines[seq]
    frame: Frame = {"seq": seq, "ts": line.ts, "from": line.sender, "to": line.to, "kind": line.kind, "body": line.body}
    return {**frame, **({"ref": line.ref} if line.ref else {}), **keys}


def test_answers_that_contradict_each_other_are_seen() -> None:
    one = log((ANN, "message", "hi", 0))
    line = one.lines[1]
    for c, other in (
        ("13", Line(2, 1, ANN, BEN, "message", "x", 0, "new")),
        ("12", Line(1, 1, ANN, BEN, "message", "x", 0, "new")),
        ("12", Line(2, 1, ANN, BEN, "message", "x", 0, line.cid)),
    ):
        with pytest.raises(Mismatch):
            one.add(c, other)
    one.add("12", line)  # a retry


def test_holes_and_times_that_fall_are_seen() -> None:
    one = log((ANN, "message", "hi", 0))
    one.check_whole()
    one.add("12", Line(3, 5000, BEN, ANN, "message", "x", 0, "cid3"))
    with pytest.raises(Mismatch, match="without holes"):
        one.check_whole()
    one.add("12", Line(2, 6000, BEN, ANN, "message", "x", 0, "cid2"))
    with pytest.raises(Mismatch, match="never fall"):
        one.check_whole()


def test_a_message_may_be_given_as_it_was_or_as_it_stands_but_not_older_than_is_known() -> None:
    one = log((ANN, "message", "hi", 0), (ANN, "edit", "hi!", 1), (ANN, "delete", None, 1))
    assert one.problem(entry(one, 1)) == ""
    assert one.problem(entry(one, 1, rev=2, body="hi!")) == ""
    assert one.problem(entry(one, 1, rev=3, body=None), known_head=3) == ""
    assert one.problem(entry(one, 1), known_head=3) != ""
    assert one.problem(entry(one, 1, rev=2)) != ""
    assert one.problem(entry(one, 2)) == ""
    assert one.problem(entry(one, 2, body="other")) != ""
    assert one.problem(entry(one, 3)) == ""
    assert one.problem(entry(one, 3, body="x")) != ""
    assert one.text(1) is None


@pytest.mark.parametrize("wrong", [{"from": BEN}, {"ts": 1}, {"kind": "edit"}, {"cid": "x"}, {"body": "x"}, {"seq": 9}])
def test_an_entry_that_nobody_sent_so_is_seen(wrong: Frame) -> None:
    one = log((ANN, "message", "hi", 0))
    assert one.problem(entry(one, 1)) == ""
    assert one.problem({**entry(one, 1), **wrong}) != ""


def test_an_item_hides_the_peers_cursors_until_both_have_sent() -> None:
    one = log((ANN, "message", "hi", 0), (ANN, "message", "there", 0))
    one.cursors[BEN].move(2, 1)
    assert one.item(BEN) | {"unread": 1, "read": 1, "delivered": 2, "open": False} == one.item(BEN)
    assert one.item(ANN)["peer_read"] == 0
    one.add("12", Line(3, 2000, BEN, ANN, "message", "yes", 0, "cid3"))
    assert one.item(ANN) | {"peer_read": 1, "peer_delivered": 2, "open": True, "unread": 1} == one.item(ANN)


def test_cursors_only_go_forward_and_read_moves_delivered_along() -> None:
    one = log().cursors[ANN]
    one.move(3, 0)
    one.move(2, 4)
    assert (one.delivered, one.read) == (4, 4)
    one.move(1, 1)
    assert (one.delivered, one.read) == (4, 4)
