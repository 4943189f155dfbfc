"""The order and rate of one session's entries, by themselves.

How the pipeline uses them: test_send.py; under delays and losses: test_session_order.py.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from chatd import errors
from chatd.core.rate_limit import EARLY_SLACK_S, Penalty, PenaltyVerdict, SlidingWindow
from chatd.core.send_order import BLOCKS_MAX, UNTROUBLED, SendOrder
from chatd.core.session import User
from chatd.ids import Cid, UserId

ALICE, BOB, CAROL = (UserId(name) for name in ("alice", "bob", "carol"))
A, B, C = (Cid(c) for c in "abc")
AWAY = errors.Unavailable("away", retry_ms=1_000)


class Verdict(NamedTuple):
    """What becomes of an entry on its way in."""

    probe: bool
    taken_at: float
    resent_early: bool


class Device:
    """One session's order and its user's rate, as the pipeline calls them.

    What is refused is given, not raised.
    """

    def __init__(self, user: User | None = None, strikes: int = 8) -> None:
        self.user = user or User(ALICE, SlidingWindow(10, 5.0), Penalty(strikes), SlidingWindow(100, 3600.0))
        self.order = SendOrder()
        self.last_id = 0

    def arrive(self, peer: UserId, cid: Cid, now: float) -> bool | errors.Blocked:
        try:
            return self.order.arrive(peer, cid, now)
        except errors.Blocked as e:
            return e

    def decide(self, peer: UserId, cid: Cid, id: int, resent_early: bool, now: float) -> Verdict | errors.Blocked:
        try:
            if self.order.decide(peer, cid, id, self.user, now):
                return Verdict(False, now, resent_early)
        except errors.Blocked as e:
            return e
        self.order.probe(peer)
        return Verdict(True, 0.0, resent_early)

    def admit(self, peer: UserId, cid: Cid, now: float) -> Verdict | errors.Blocked:
        """Of an entry that has just been read, and waits for nothing."""
        arrived = self.arrive(peer, cid, now)
        if isinstance(arrived, errors.Blocked):
            return arrived
        return self.decide(peer, cid, self.last_id + 1, arrived, now)

    def limited(
        self, peer: UserId, cid: Cid, id: int, resent_early: bool, now: float
    ) -> PenaltyVerdict | errors.Blocked:
        """A probe's answer: nothing is known of the cid."""
        if peer in self.order.probing:
            self.order.probed(peer)
        try:
            return self.order.limited(peer, cid, id, self.last_id, self.user, now, resent_early=resent_early)
        except errors.Blocked as e:
            return e

    def failed(self, peer: UserId, cid: Cid, id: int) -> errors.Refused:
        return self.order.failed(peer, cid, id, self.last_id, AWAY)

    def not_queued(self, peer: UserId, cid: Cid, id: int) -> errors.Refused:
        return self.order.not_queued(peer, cid, id, AWAY)


def blocker(answer: object) -> str | None:
    """The cid that an answer says is waited for."""
    return answer.cid if isinstance(answer, errors.Blocked) else None


def fill(session: Device, now: float) -> None:
    for n in range(10):
        assert session.admit(CAROL, Cid(f"fill{n}"), now) == Verdict(False, now, False)


# ---- the rate of entries ------------------------------------------------------------------------


def test_an_entry_over_the_rate_is_only_probed_for() -> None:
    session = Device()
    fill(session, 100.0)
    assert session.admit(BOB, A, 101.0) == Verdict(True, 0.0, False)
    refused = session.limited(BOB, A, 1, False, 101.0)
    assert refused == PenaltyVerdict(close=False, wait_s=4.0)
    assert session.admit(BOB, A, 105.0) == Verdict(False, 105.0, False)


def test_what_follows_a_probe_in_its_conversation_is_a_probe_until_its_answer_is_in() -> None:
    session = Device()
    fill(session, 100.0)
    assert session.admit(BOB, A, 104.9) == Verdict(True, 0.0, False)
    assert session.admit(BOB, B, 105.0) == Verdict(True, 0.0, False)  # there is room, but A must not be overtaken
    assert session.admit(CAROL, C, 105.0) == Verdict(False, 105.0, False)
    session.order.probed(BOB)  # A was known: it is answered as a duplicate
    assert session.admit(BOB, C, 105.0) == Verdict(True, 0.0, False)
    session.order.probed(BOB)
    session.order.probed(BOB)
    assert session.admit(BOB, Cid("d"), 105.0) == Verdict(False, 105.0, False)


def test_two_devices_share_the_rate() -> None:
    phone, laptop = Device(), Device()
    laptop.user = phone.user
    fill(phone, 100.0)
    assert laptop.admit(BOB, A, 101.0) == Verdict(True, 0.0, False)


def test_coming_back_in_time_is_no_offence_also_if_another_device_was_quicker() -> None:
    phone, laptop = Device(), Device()
    user = laptop.user = phone.user
    fill(phone, 100.0)
    for session, peer, at in ((phone, BOB, 101.0), (laptop, BOB, 103.0)):
        session.admit(peer, A, at)
        refused = session.limited(peer, A, 1, False, at)
        assert isinstance(refused, PenaltyVerdict)
        assert at + refused.wait_s == 105.0
    for n in range(10):  # a third device takes all the room
        assert user.window.take(105.0) == 0.0, n
    for session, at in ((phone, 105.0), (laptop, 106.0)):
        assert session.admit(BOB, A, at) == Verdict(True, 0.0, False)
        assert isinstance(session.limited(BOB, A, 2, False, at), PenaltyVerdict)
    assert user.penalty.until == 0.0


def test_a_timer_that_fires_a_little_early_is_no_offence() -> None:
    session = Device()
    fill(session, 100.0)
    session.admit(BOB, A, 101.0)
    session.limited(BOB, A, 1, False, 101.0)
    assert session.admit(BOB, A, 105.0 - EARLY_SLACK_S) == Verdict(True, 0.0, False)


def test_coming_back_early_doubles_the_wait_for_all_of_the_user() -> None:
    session, other = Device(), Device()
    user = other.user = session.user
    fill(session, 100.0)
    session.admit(BOB, A, 101.0)
    session.limited(BOB, A, 1, False, 101.0)
    assert session.admit(BOB, A, 102.0) == Verdict(True, 0.0, True)
    refused = session.limited(BOB, A, 2, True, 102.0)
    assert refused == PenaltyVerdict(close=False, wait_s=6.0), "twice the three seconds that were left"
    assert user.penalty.until == 108.0
    assert other.admit(CAROL, B, 107.9) == Verdict(True, 0.0, False)
    assert session.admit(BOB, A, 108.0) == Verdict(False, 108.0, False)


def test_who_never_waits_is_closed() -> None:
    session = Device(strikes=3)
    fill(session, 100.0)
    answers = []
    for n in range(6):
        verdict = session.admit(BOB, A, 101.0 + n / 100)
        assert isinstance(verdict, Verdict)
        answers.append(session.limited(BOB, A, n, verdict.resent_early, 101.0 + n / 100))
    assert [answer.close for answer in answers if isinstance(answer, PenaltyVerdict)] == [False] * 4 + [True] * 2


def test_waiting_for_something_else_than_the_rate_is_no_offence() -> None:
    session = Device()
    session.failed(BOB, A, 1)
    assert session.admit(BOB, A, 1.0) == Verdict(False, 1.0, False)


# ---- the order of entries ------------------------------------------------------------------------


def test_after_a_retryable_error_later_entries_of_that_conversation_wait_for_it() -> None:
    session = Device()
    session.last_id = 1
    assert session.failed(BOB, A, 1) is AWAY
    assert blocker(session.admit(BOB, B, 1.0)) == A
    assert isinstance(session.admit(CAROL, B, 1.0), Verdict)
    assert isinstance(session.admit(BOB, A, 1.0), Verdict)
    assert isinstance(session.admit(BOB, B, 1.0), Verdict)


def test_a_skip_frees_the_conversation_and_only_for_the_cid_waited_for() -> None:
    session = Device()
    session.order.skip(BOB, A)
    session.failed(BOB, A, 1)
    session.order.skip(BOB, B)
    session.order.skip(CAROL, A)
    assert blocker(session.admit(BOB, B, 1.0)) == A
    session.order.skip(BOB, A)
    assert isinstance(session.admit(BOB, B, 1.0), Verdict)


def test_who_has_read_that_it_must_wait_is_early_whatever_it_sends() -> None:
    session = Device()
    for at in range(10):
        assert session.user.window.take(at / 10) == 0.0

    def judged(peer: UserId, cid: Cid, now: float) -> bool:
        verdict = session.admit(peer, cid, now)
        assert isinstance(verdict, Verdict)
        return verdict.resent_early

    assert judged(BOB, A, 1.0) is False
    assert session.limited(BOB, A, 1, False, 1.0) == PenaltyVerdict(close=False, wait_s=4.0)
    assert judged(CAROL, B, 1.1) is False  # perhaps on its way before the refusal came
    session.order.skip(BOB, A)
    assert judged(BOB, B, 1.2) is True
    assert judged(CAROL, C, 5.0 - EARLY_SLACK_S - 0.001) is True
    assert session.arrive(CAROL, C, 1.2) is True
    assert judged(BOB, C, 5.0 - EARLY_SLACK_S) is False
    assert session.arrive(CAROL, C, 5.0) is False


def test_a_failure_that_names_no_time_makes_nothing_early() -> None:
    session = Device()
    session.failed(BOB, A, 1)
    session.order.skip(BOB, A)
    verdict = session.admit(BOB, B, 0.0)
    assert isinstance(verdict, Verdict)
    assert verdict.resent_early is False


def test_of_several_that_fail_together_the_first_is_waited_for() -> None:
    session = Device()
    session.last_id = 3
    assert session.failed(BOB, A, 1) is AWAY
    assert blocker(session.failed(BOB, B, 2)) == A
    assert blocker(session.limited(BOB, C, 3, False, 1.0)) == A


def test_what_was_queued_behind_a_failed_entry_is_overtaken_also_once_that_is_back() -> None:
    session = Device()
    session.last_id = 3
    session.failed(BOB, A, 1)
    assert [session.order.overtaken(BOB, id) for id in (2, 3, 4)] == [A, A, None]
    assert session.order.overtaken(CAROL, 2) is None
    session.last_id = 4
    assert isinstance(session.admit(BOB, A, 1.0), Verdict)  # request 4
    assert [session.order.overtaken(BOB, id) for id in (2, 3, 4)] == [A, A, None]
    assert blocker(session.failed(BOB, B, 2)) == A  # and if the lane had it already, it blocks nothing
    assert isinstance(session.admit(BOB, C, 1.0), Verdict)


def test_an_entry_that_got_no_place_waits_and_those_before_it_do_not() -> None:
    session = Device()
    session.last_id = 5
    assert session.not_queued(BOB, B, 5) is AWAY
    assert blocker(session.admit(BOB, C, 1.0)) == B
    assert session.order.overtaken(BOB, 4) is None
    assert session.failed(BOB, A, 4) is AWAY  # an earlier one fails: now that is waited for
    assert blocker(session.admit(BOB, B, 1.0)) == A
    assert isinstance(session.admit(BOB, A, 1.0), Verdict)
    assert isinstance(session.admit(BOB, B, 1.0), Verdict)


def test_a_later_one_that_got_no_place_changes_nothing() -> None:
    session = Device()
    session.last_id = 2
    session.failed(BOB, A, 1)
    assert blocker(session.not_queued(BOB, B, 2)) == A
    assert session.not_queued(BOB, A, 3) is AWAY


def test_twins_get_the_same_answer_and_keep_the_place_of_the_first() -> None:
    session = Device()
    session.last_id = 9
    assert session.failed(BOB, A, 1) is AWAY
    assert session.failed(BOB, A, 5) is AWAY
    assert blocker(session.failed(BOB, B, 3)) == A
    assert blocker(session.admit(BOB, B, 1.0)) == A


def test_an_entry_that_comes_in_and_has_to_wait_follows_the_same_rule() -> None:
    session = Device()
    assert session.arrive(BOB, A, 1.0) is False
    session.not_queued(BOB, A, 1)
    assert blocker(session.arrive(BOB, B, 1.0)) == A
    assert session.arrive(BOB, A, 1.0) is False
    assert session.arrive(BOB, B, 1.0) is False


def test_an_entry_that_waited_knows_whether_it_came_too_early() -> None:
    session = Device()
    fill(session, 100.0)
    assert session.decide(BOB, A, 1, False, 101.0) == Verdict(True, 0.0, False)
    session.limited(BOB, A, 1, False, 101.0)
    resent_early = session.arrive(BOB, A, 102.0)
    assert resent_early is True
    assert session.decide(BOB, A, 1, resent_early, 102.0) == Verdict(True, 0.0, True)


def test_what_fails_while_an_entry_waits_stops_it_as_in_a_lane() -> None:
    session = Device()
    session.last_id = 5
    session.failed(BOB, A, 3)
    assert [blocker(session.decide(BOB, B, id, False, 1.0)) for id in (4, 5)] == [A, A]
    assert blocker(session.decide(BOB, A, 5, False, 1.0)) == A  # a repeat that came before the failure is known, too
    assert isinstance(session.decide(CAROL, B, 5, False, 1.0), Verdict)
    session.last_id = 6
    assert session.arrive(BOB, A, 1.0) is False  # request 6: what comes behind it may follow
    assert blocker(session.decide(BOB, B, 5, False, 1.0)) == A  # but this one came before it
    assert isinstance(session.decide(BOB, A, 6, False, 1.0), Verdict)
    assert isinstance(session.decide(BOB, C, 7, False, 1.0), Verdict)


def test_what_gets_no_place_while_an_entry_waits_stops_only_what_came_after_it() -> None:
    session = Device()
    session.last_id = 5
    assert session.not_queued(BOB, C, 5) is AWAY  # too many frames: refused on arrival
    assert isinstance(session.decide(BOB, A, 4, False, 1.0), Verdict)
    # An earlier try of the same: it does not free what is waited for
    assert isinstance(session.decide(BOB, C, 3, False, 1.0), Verdict)
    assert blocker(session.arrive(BOB, B, 1.0)) == C
    assert session.not_queued(BOB, A, 4) is AWAY  # the lane was full when it came out
    assert blocker(session.decide(BOB, B, 6, False, 1.0)) == A
    assert isinstance(session.decide(BOB, A, 7, False, 1.0), Verdict)
    assert isinstance(session.decide(BOB, B, 8, False, 1.0), Verdict)


def test_a_skip_does_not_let_through_what_came_before_it() -> None:
    """It was to be refused, and another entry may have failed with the first: that one would be
    overtaken.
    """
    session = Device()
    session.last_id = 3
    session.failed(BOB, A, 1)
    assert blocker(session.failed(BOB, B, 2)) == A
    session.order.skip(BOB, A)
    assert blocker(session.decide(BOB, C, 3, False, 1.0)) == A
    assert session.arrive(BOB, B, 1.0) is False


# ---- the object ----------------------------------------------------------------------------------


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
        order.failed(UserId(f"u{n}"), Cid(f"c{n}"), n, n, AWAY)
    assert len(order.blocked) == len(order.cuts) == BLOCKS_MAX
    assert UserId("u9") not in order.blocked
    assert UserId("u10") in order.blocked


def test_the_order_that_all_sessions_share_is_never_written_to() -> None:
    with pytest.raises(AssertionError):
        UNTROUBLED.failed(BOB, A, 1, 1, AWAY)
    with pytest.raises(AssertionError):
        UNTROUBLED.not_queued(BOB, A, 1, AWAY)
    with pytest.raises(AssertionError):
        UNTROUBLED.probe(BOB)
    with pytest.raises(AssertionError):
        UNTROUBLED.limited(BOB, A, 1, 1, Device().user, 0.0, resent_early=False)
    assert UNTROUBLED.arrive(BOB, A, 0.0) is False
    user = Device().user
    assert [UNTROUBLED.decide(BOB, A, n, user, 1.0) for n in range(11)] == [True] * 10 + [False]
    UNTROUBLED.skip(BOB, A)
    assert (UNTROUBLED.blocked, UNTROUBLED.cuts, UNTROUBLED.probing, UNTROUBLED.warned_until) == ({}, {}, {}, 0.0)
