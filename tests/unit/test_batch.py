"""Which items make a batch: the four rules, over random queues."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from chatd.core.batch import PROBE, Batch, Item, LaneQueue
from chatd.core.conversation import Conversation
from chatd.core.frame_rate import FrameRate
from chatd.core.session import Session
from chatd.errors import Unavailable
from chatd.ids import Cid, ConvId, Seq, UserId
from chatd.protocol import DELETE, EDIT, MESSAGE
from tests.silent import Silent

if TYPE_CHECKING:
    from collections.abc import Iterable

ALICE, BOB, CAROL = (UserId(name) for name in ("alice", "bob", "carol"))
WITH = {BOB: Conversation(ConvId(1), ALICE, BOB), CAROL: Conversation(ConvId(2), ALICE, CAROL)}


def make_session() -> Session:
    return Session(Silent(), FrameRate(100, 400), 0.0)


def item(session: Session, id: int, peer: UserId = BOB, cid: str = "", kind: int = MESSAGE) -> Item:
    session.last_id = max(session.last_id, id)
    return Item(
        session,
        id,
        WITH[peer],
        peer,
        0,
        Cid(cid or f"c{id}"),
        kind,
        None if kind == DELETE else "hi",
        Seq(1) if kind else None,
        0,
    )


def queue_of(items: Iterable[Item], rows_max: int = 256) -> LaneQueue:
    queue = LaneQueue(rows_max)
    queue.items.extend(items)
    return queue


def everyone(batch: Batch) -> list[Item]:
    return [one for first in batch.items for one in (first, *(first.twins or ()))]


kinds = st.sampled_from([MESSAGE, MESSAGE, MESSAGE, EDIT, DELETE])
# (device, peer, cid, kind)
entries = st.lists(st.tuples(st.integers(0, 1), st.sampled_from([BOB, CAROL]), st.integers(0, 12), kinds), max_size=40)


def items_of(drawn: list[tuple[int, UserId, int, int]]) -> list[Item]:
    devices = [make_session(), make_session()]
    return [
        item(devices[device], n, peer, f"{peer}{cid}", kind) for n, (device, peer, cid, kind) in enumerate(drawn, 1)
    ]


@given(entries, st.integers(1, 8))
def test_every_item_is_taken_once_in_order_and_no_cid_twice_a_batch(
    drawn: list[tuple[int, UserId, int, int]], rows_max: int
) -> None:
    items = items_of(drawn)
    queue = queue_of(items, rows_max)
    taken: list[Item] = []
    while len(queue):
        batch, blocked = queue.gather()
        assert not blocked
        assert 1 <= len(batch.items) <= rows_max
        assert batch.items == batch.messages + batch.changes
        assert {i.kind for i in batch.messages} <= {MESSAGE}
        assert MESSAGE not in {i.kind for i in batch.changes}
        assert max(Counter((i.conv.id, i.cid) for i in batch.items).values()) == 1
        for first in batch.items:
            assert all(
                (twin.conv, twin.cid) == (first.conv, first.cid) and twin.id > first.id for twin in first.twins or ()
            )
        taken += everyone(batch)
        # The order that `append` gives is the order that they came in, conversation by
        # conversation.
        firsts = {id(i): n for n, i in enumerate(batch.items)}
        for conv in WITH.values():
            came = [i for i in items if i.conv is conv and id(i) in firsts]
            assert came == sorted(came, key=lambda i: firsts[id(i)])
    assert sorted(map(id, taken)) == sorted(map(id, items))


def test_no_message_comes_after_an_edit_or_delete_of_its_conversation() -> None:
    one = make_session()
    queue = queue_of(
        [
            item(one, 1),
            item(one, 2, kind=EDIT),
            item(one, 3, CAROL),
            item(one, 4, kind=DELETE),
            item(one, 5),
            item(one, 6, CAROL),
        ]
    )
    first, _ = queue.gather()
    assert [[i.id for i in part] for part in first] == [[1, 3], [2, 4]]
    second, _ = queue.gather()
    assert [[i.id for i in part] for part in second] == [[5, 6], []]


def test_a_cid_again_waits_for_the_answer_of_the_first() -> None:
    one, other = make_session(), make_session()
    first, twin, cousin = item(one, 1, cid="x"), item(one, 2, cid="x"), item(other, 1, cid="x")
    batch, _ = queue_of([first, twin, item(one, 3), cousin]).gather()
    assert [i.id for i in batch.items] == [1, 3]
    assert first.twins == [twin, cousin]


def test_an_entry_is_no_twin_of_a_probe() -> None:
    """A device comes back while the probe of its entry waits, and is within the rate again: with the
    probe's answer this one would not be written, and what is behind it would.
    """
    old, new = make_session(), make_session()
    probe, probe_again = item(old, 1, cid="x"), item(old, 2, cid="x")
    probe.flags = probe_again.flags = PROBE
    again, behind = item(new, 1, cid="x"), item(new, 2)
    queue = queue_of([probe, probe_again, again, behind])
    first, _ = queue.gather()
    assert first.items == [probe]
    assert probe.twins == [probe_again]
    second, _ = queue.gather()
    assert second.items == [again, behind]


def test_a_probe_is_a_twin_of_an_entry() -> None:
    one, other = make_session(), make_session()
    first, probe = item(one, 1, cid="x"), item(other, 1, cid="x")
    probe.flags = PROBE
    batch, _ = queue_of([first, probe, item(other, 2)]).gather()
    assert [i.id for i in batch.items] == [1, 2]
    assert first.twins == [probe]


def test_the_same_cid_in_another_conversation_or_from_the_other_side_is_another_entry() -> None:
    one, other = make_session(), make_session()
    theirs = item(other, 1, cid="x")
    theirs.side = 1
    batch, _ = queue_of([item(one, 1, cid="x"), item(one, 2, CAROL, cid="x"), theirs]).gather()
    assert len(batch.items) == 3


# ---- what is behind an entry that failed ---------------------------------------------------------

AWAY = Unavailable("away", retry_ms=1000)


def test_what_is_queued_behind_an_entry_that_failed_is_refused() -> None:
    one, other = make_session(), make_session()
    failed = item(one, 1)
    behind = [item(one, 2), item(one, 3, kind=EDIT)]
    elsewhere = [item(one, 4, CAROL), item(other, 1)]
    one.own_order().failed(BOB, failed.cid, failed.id, one.last_id, AWAY)
    batch, blocked = queue_of([*behind, *elsewhere]).gather()
    assert blocked == behind
    assert batch.items == elsewhere


def test_it_stays_refused_when_the_failed_one_is_back_behind_it() -> None:
    """Seen: the entry that came back freed the conversation, and what still stood before it in the
    queue was written first.
    """
    one = make_session()
    late = item(one, 2)
    one.own_order().failed(BOB, Cid("c1"), 1, one.last_id, AWAY)
    assert one.order.arrive(BOB, Cid("c1"), 1.0) is False
    back, after = item(one, 3, cid="c1"), item(one, 4)
    batch, blocked = queue_of([late, back, after]).gather()
    assert blocked == [late]
    assert batch.items == [back, after]


def test_an_entry_that_got_no_place_does_not_stop_those_before_it() -> None:
    """Seen: one frame too many a second refused the forty before it, which then came after it."""
    one = make_session()
    before = [item(one, 1), item(one, 2)]
    one.last_id = 3
    one.own_order().not_queued(BOB, Cid("c3"), 3, AWAY)
    batch, blocked = queue_of(before).gather()
    assert not blocked
    assert batch.items == before


# ---- halves --------------------------------------------------------------------------------------


@given(entries)
def test_halves_are_the_same_batch_one_after_the_other(drawn: list[tuple[int, UserId, int, int]]) -> None:
    batch, _ = queue_of(items_of(drawn)).gather()
    todo, singles = [batch], []
    while todo:
        part = todo.pop(0)
        if len(part.items) <= 1:
            singles += part.items
            continue
        halves = part.halves()
        assert halves[0].items + halves[1].items == part.items
        assert all(half.items for half in halves)
        todo[:0] = halves
    assert singles == batch.items


def test_a_half_loses_what_is_behind_an_entry_of_the_other_half_that_failed() -> None:
    one, other = make_session(), make_session()
    failed, behind, twin = item(one, 1), item(one, 2, cid="x"), item(one, 3, cid="x")
    cousin, second = item(other, 1, cid="x"), item(other, 2, cid="x")
    elsewhere, change = item(one, 4, CAROL), item(one, 5, kind=EDIT)
    batch, _ = queue_of([behind, twin, cousin, second, elsewhere, change]).gather()
    assert batch.sift() == (batch, [])
    one.own_order().failed(BOB, failed.cid, failed.id, one.last_id, AWAY)
    kept, blocked = batch.sift()
    assert blocked == [behind, twin, change]
    assert behind.twins is None
    assert kept == Batch([cousin, elsewhere], [])  # another device sent the same cid: its entry is written
    assert cousin.twins == [second]


def test_of_twins_whose_first_is_lost_one_that_is_no_probe_is_written() -> None:
    one, old, new = make_session(), make_session(), make_session()
    failed, behind = item(one, 1), item(one, 2, cid="x")
    probe, again, change = item(old, 1, cid="x"), item(new, 1, cid="x"), item(new, 2, kind=EDIT)
    probe.flags = PROBE
    batch, _ = queue_of([behind, probe, again, change]).gather()
    one.own_order().failed(BOB, failed.cid, failed.id, one.last_id, AWAY)
    kept, _ = batch.sift()
    assert kept == Batch([again], [change])
    assert again.twins == [probe]


@given(st.lists(st.integers(0, 6), max_size=60), st.integers(0, 40))
def test_whole_conversations_leave_a_queue_in_their_order(drawn: list[int], rows: int) -> None:
    convs = [Conversation(ConvId(n), ALICE, BOB) for n in range(7)]
    session = make_session()
    items = [Item(session, n, convs[c], BOB, 0, Cid(f"c{n}"), MESSAGE, "hi", None, 0) for n, c in enumerate(drawn, 1)]
    queue = queue_of(items)
    split = queue.split(rows)
    gone = {one.conv.id for one in split}
    assert len(split) <= rows
    assert split == [one for one in items if one.conv.id in gone], "with all that they have, in order"
    assert list(queue.items) == [one for one in items if one.conv.id not in gone]
    room = rows - len(split)
    assert all(count > room for count in Counter(one.conv.id for one in queue.items).values()), (
        "no other one had fitted"
    )
