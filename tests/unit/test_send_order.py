"""The order of one session's entries, by itself.

What the rate adds to it: test_session.py; under delays and losses: test_session_order.py.
"""

from __future__ import annotations

import pytest

from chatd import errors
from chatd.core.rate_limit import EARLY_SLACK_S
from chatd.core.send_order import BLOCKS_MAX, UNTROUBLED, SendOrder
from chatd.ids import Cid, UserId

BOB, CAROL = UserId("bob"), UserId("carol")
A, B = Cid("a"), Cid("b")


def blocker(outcome: object) -> Cid:
    assert isinstance(outcome, errors.Blocked)
    assert outcome.cid is not None
    return Cid(outcome.cid)


def test_what_follows_an_entry_that_failed_waits_for_it_in_its_own_conversation_alone() -> None:
    order = SendOrder()
    assert order.failed(BOB, A, 1, 3) is None
    assert blocker(order.arrive(BOB, B, 0.0)) == A
    assert order.arrive(CAROL, B, 0.0) is False
    assert [order.overtaken(BOB, id) for id in (2, 3, 4)] == [A, A, None], "what had been read by then stands behind it"
    assert order.arrive(BOB, A, 0.0) is False
    assert order.arrive(BOB, B, 0.0) is False
    assert order.overtaken(BOB, 3) == A, "it is back, and stands behind what was queued"


def test_an_entry_that_got_no_place_stops_only_those_after_it() -> None:
    order = SendOrder()
    assert order.not_queued(BOB, A, 5) is None
    assert order.overtaken(BOB, 4) is None
    assert order.recheck(BOB, B, 4) is None
    assert blocker(order.recheck(BOB, B, 6)) == A
    assert order.recheck(BOB, A, 7) is None, "it was sent again"
    assert order.recheck(BOB, B, 8) is None


@pytest.mark.parametrize("reads", ["sends it again", "skips it"])
def test_a_client_that_has_read_when_to_send_again_is_early_until_then(reads: str) -> None:
    order = SendOrder()
    order.failed(BOB, A, 1, 1)
    order.wait_until(BOB, 10.0)
    assert order.arrive(CAROL, B, 1.0) is False, "perhaps it was on its way before the refusal came"
    if reads == "skips it":
        order.skip(BOB, B)
        assert order.arrive(CAROL, B, 1.0) is False, "another cid was not waited for"
        order.skip(BOB, A)
    else:
        assert order.arrive(BOB, A, 1.0) is True
    assert order.arrive(CAROL, B, 10.0 - EARLY_SLACK_S - 0.001) is True
    assert order.arrive(CAROL, B, 10.0 - EARLY_SLACK_S) is False


def test_probes_are_counted_until_the_last_answer_is_in() -> None:
    order = SendOrder()
    order.probe(BOB)
    order.probe(BOB)
    order.probed(BOB)
    assert order.probing == {BOB: 1}
    order.probed(BOB)
    assert order.probing == {}


def test_conversations_that_wait_are_bounded_and_the_longest_waiting_one_goes_first() -> None:
    order = SendOrder()
    for n in range(BLOCKS_MAX + 10):
        order.failed(UserId(f"u{n}"), Cid(f"c{n}"), n, n)
    assert len(order.blocked) == len(order.cuts) == BLOCKS_MAX
    assert UserId("u9") not in order.blocked
    assert UserId("u10") in order.blocked


def test_the_order_that_all_sessions_share_is_never_written_to() -> None:
    with pytest.raises(AssertionError):
        UNTROUBLED.failed(BOB, A, 1, 1)
    with pytest.raises(AssertionError):
        UNTROUBLED.not_queued(BOB, A, 1)
    with pytest.raises(AssertionError):
        UNTROUBLED.probe(BOB)
    assert UNTROUBLED.arrive(BOB, A, 0.0) is False
    assert UNTROUBLED.recheck(BOB, A, 1) is None
    UNTROUBLED.skip(BOB, A)
    assert (UNTROUBLED.blocked, UNTROUBLED.cuts, UNTROUBLED.probing, UNTROUBLED.warned_until) == ({}, {}, {}, 0.0)
