"""The answer of `append`: every item has a result, or the batch has none.

What `append` itself gives: tests/integration/test_append.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from chatd.core.batch import Batch, Item
from chatd.core.conversation import Conversation
from chatd.core.frame_rate import FrameRate
from chatd.core.session import Session
from chatd.ids import Cid, ConvId, UserId
from chatd.postgres.append_answer import Answer, First, Result, What, is_behind, read
from chatd.postgres.faults import Outage
from chatd.protocol import DELETE, EDIT, MESSAGE

ONE, TWO = (Conversation(ConvId(n), UserId("alice"), UserId("bob")) for n in (1, 2))


def item(conv: Conversation = ONE, kind: int = MESSAGE) -> Item:
    session = Session(object(), FrameRate(1e6, 100), 0.0)  # type: ignore[arg-type]
    return Item(session, 1, conv, conv.b, 0, Cid("c"), kind, "hi", None, 0)


def test_each_item_has_its_result() -> None:
    batch = Batch(
        [item(), item(TWO), item(), item(TWO)],
        [item(kind=EDIT), item(TWO, EDIT), item(kind=DELETE), item(kind=DELETE), item(kind=EDIT)],
    )
    rows: list[tuple[Any, ...]] = [
        (3, 2, None, None, "limited"),
        (1, 2, 4, 50, "dup"),
        (None, 1, 7, 60, None),
        (-2, 2, 3, 40, "dup"),
        (-1, 1, 9, 61, None),
        (-3, 1, 10, 62, "ref 5"),
        (-4, 1, None, None, "deleted"),
        (-5, 1, None, None, "limited"),
    ]
    assert read(rows, batch, {ConvId(1), ConvId(2)}) == Answer(
        {ConvId(1): First(7, 60)},
        {1: Result(What.DUPLICATE, 4, 50), 3: Result(What.LIMITED)},
        [
            Result(What.WRITTEN, 9, 61),
            Result(What.DUPLICATE, 3, 40),
            Result(What.WRITTEN, 10, 62, 5),
            Result(What.DELETED),
            Result(What.LIMITED),
        ],
    )


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [(None, 2, 1, 1, None)],
        [(0, 1, None, None, "dup")],
        [(0, 1, None, None, "a note of a later release")],
        [(1, 1, 5, 5, "dup")],
        [(None, 1, None, 1, None)],
        [(None, 1, 0, 1, None)],
        [(None, 1, 1, None, None)],
        [(None, None, None, None, None)],
        [(None, 1, 1, 1)],
        [(None, 1, "1", 1, None)],
        [(0, 1, 5, None, "dup")],
        [(0, 1, 0, 0, "dup")],
        [(0, 2, 5, 5, "dup")],
        [(0, 1, 5, 5, None)],
        [(0, 1, 5, 5, "no_message")],
        [(0, 1, 5, 5, "ref x")],
        [(-1, 1, 5, 5, "dup"), (None, 1, 1, 1, None)],
        [(7, 1, 5, 5, "dup"), (None, 1, 1, 1, None)],
    ],
)
def test_an_item_without_an_answer_has_no_outcome(rows: list[tuple[Any, ...]]) -> None:
    with pytest.raises(Outage):
        read(rows, Batch([item()], []), {ConvId(1)})


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [(-1, 1, 5, 5, None)],
        [(-1, 1, 5, 5, None), (-1, 1, 6, 5, None)],
        [(-1, 1, 5, 5, None), (-2, 1, None, None, None)],
        [(-1, 1, 5, 5, None), (-2, 1, 0, 5, "ref 1")],
        [(-1, 1, 5, 5, None), (-2, 1, 6, 5, "ref x")],
        [(-1, 1, 5, 5, None), (-2, 2, 6, 5, None)],
        [(-1, 1, 5, 5, None), (-2, 1, 6, 5, "a note of a later release")],
        [(-1, 1, 5, 5, None), (-2, 1, 6, 5, None), (-3, 1, 7, 5, None)],
        [(-1, 1, 5, 5, None), (-2, 1, 6, 5, None), (None, 1, 7, 5, None)],
    ],
)
def test_a_change_without_an_answer_has_no_outcome_either(rows: list[tuple[Any, ...]]) -> None:
    with pytest.raises(Outage):
        read(rows, Batch([], [item(kind=EDIT), item(kind=DELETE)]), set())


def test_a_new_entry_at_a_seq_that_was_delivered_before_shows_a_log_that_fell_back() -> None:
    messages, changes = Batch([item()], []), Batch([], [item(kind=EDIT)])
    new, known = Answer({ConvId(1): First(5, 9)}, {}, []), Answer({}, {0: Result(What.DUPLICATE, 5, 9)}, [])
    assert [is_behind(messages, new, [head]) for head in (4, 5, 6)] == [False, True, True]
    assert not is_behind(messages, known, [6])
    assert [is_behind(changes, Answer({}, {}, [Result(What.WRITTEN, 5, 9)]), [head]) for head in (4, 5)] == [
        False,
        True,
    ]
    assert not is_behind(changes, Answer({}, {}, [Result(What.NO_MESSAGE)]), [6])
