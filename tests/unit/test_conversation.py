"""One conversation: its names, and cursors that only move forward."""

from __future__ import annotations

import hashlib

import pytest

from chatd.core.conversation import Conversation, pair_check
from chatd.ids import ConvId, UserId

ALICE, BOB = UserId("alice"), UserId("bob")


def test_the_check_of_a_pair_is_28_bits_of_both_names_and_their_order() -> None:
    digest = hashlib.sha256(b"alice\nbob").hexdigest()
    assert f"{pair_check(ALICE, BOB):07x}" == digest[:7]
    assert pair_check(ALICE, BOB) != pair_check(BOB, ALICE)
    assert Conversation(ConvId(1), ALICE, BOB).check == pair_check(ALICE, BOB) << 3


@pytest.mark.parametrize("side", [0, 1])
def test_cursors_move_forward_alone_and_read_implies_delivered(side: int) -> None:
    conv = Conversation(ConvId(1), ALICE, BOB)
    assert conv.advance(side, 3, 0)
    assert conv.cursor(side) == (3, 0)
    assert conv.advance(side, 0, 5)
    assert conv.cursor(side) == (5, 5)
    assert not conv.advance(side, 4, 2)
    assert conv.cursor(side) == (5, 5)
    assert conv.cursor(1 - side) == (0, 0)


def test_it_is_open_once_both_have_sent_and_notes_to_oneself_always_are() -> None:
    conv = Conversation(ConvId(1), ALICE, BOB)
    was = [conv.open]
    for side in ("na", "nb"):
        setattr(conv, side, 1)
        was.append(conv.open)
    assert was == [False, False, True]
    assert Conversation(ConvId(2), ALICE, ALICE).open


def test_sides_and_names() -> None:
    conv = Conversation(ConvId(1), UserId('a"'), BOB)
    assert (conv.side(conv.a), conv.side(BOB)) == (0, 1)
    assert (conv.peer(conv.a), conv.peer(BOB)) == (BOB, conv.a)
    assert conv.names(0) == (rb'"a\""', b'"bob"')
    assert conv.names(1) == conv.names(0)[::-1]
