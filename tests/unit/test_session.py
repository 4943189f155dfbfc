"""The session's table of states, cell by cell; and the rules of order and rate, each by itself.

How they work together under losses and delays is in `test_session_order.py`.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd import errors
from chatd.core.rate_limit import EARLY_SLACK_S, Penalty, SlidingWindow, TokenBucket
from chatd.core.send_order import UNTROUBLED
from chatd.core.session import (
    BAD_FRAMES_MAX,
    DEFERRED_MAX,
    THROTTLED_FORGIVEN_PER_S,
    THROTTLED_MAX,
    End,
    Reply,
    Session,
    State,
    Throttled,
    User,
    Verdict,
)
from chatd.errors import CloseCode
from chatd.ids import Cid, DeviceId, UserId
from chatd.protocol import REQUEST_TYPES, Bounds, Hello, Request, Send
from tests.samples import request

ALICE, BOB, CAROL = (UserId(name) for name in ("alice", "bob", "carol"))
A, B, C = (Cid(c) for c in "abc")


class Silent:
    address = "test"
    is_paused = False

    def send(self, frame: bytes) -> None: ...
    def close(self, code: int, reason: str) -> None: ...
    async def drained(self) -> None: ...


def make(state: State = State.LIVE, *, burst: int = 10_000, strikes: int = 8) -> Session:
    session = Session(Silent(), TokenBucket(1e-6, burst), 0.0)
    session.state = state
    session.user = User(ALICE, SlidingWindow(10, 5.0), Penalty(strikes), SlidingWindow(100, 3600.0))
    session.device = DeviceId("phone")
    return session


def error_of(effect: object) -> tuple[int, str]:
    """(id, code) of the error that an effect answers with."""
    assert isinstance(effect, Reply | End)
    assert effect.frame is not None
    facts = json.loads(effect.frame)
    assert facts["t"] == "err"
    return facts["id"], facts["code"]


# ---- the table of states -------------------------------------------------------------------------

GOOD = list(REQUEST_TYPES)
# What a session answers with on its own, by the frame; in every state but CLOSED.
WRONG = {
    "not json": (b"{", (0, "bad_frame")),
    "no id": (b'{"t":"ping"}', (0, "bad_frame")),
    "no type": (b'{"id":7}', (0, "bad_frame")),
    "an old id": (request("ping", 5), (5, "bad_id")),
    "unknown type": (b'{"t":"nope","id":7}', (7, "unknown_type")),
    "bad field": (request("send", 7, cid="x"), (7, "bad_field")),
    "bad text": (request("send", 7, body="\0"), (7, "bad_text")),
    "too long": (request("send", 7, body="x" * 2049), (7, "too_long")),
    "bad seq": (request("ack", 7, seq=0), (7, "bad_seq")),
    "no conversation": (request("ack", 7, c="x"), (7, "no_conversation")),
}


@pytest.mark.parametrize("t", GOOD)
@pytest.mark.parametrize("state", State)
def test_each_cell_of_a_good_request(state: State, t: str) -> None:
    session = make(state)
    effect = session.receive(request(t, 7), 1.0)
    match state, t == "hello":
        case State.AWAIT_HELLO, True:
            assert isinstance(effect, Hello)
            assert session.state is State.OPENING
            return
        case State.AWAIT_HELLO, False:
            assert error_of(effect) == (7, "bad_state")
        case ((State.OPENING | State.LIVE), True):
            assert error_of(effect) == (7, "bad_state")
        case State.OPENING, False:
            assert effect is None
            assert session.deferred is not None
            assert [one.id for one in session.deferred if not isinstance(one, Throttled)] == [7]
        case State.LIVE, False:
            assert isinstance(effect, Request)
            assert effect.id == 7
        case State.CLOSED, _:
            assert effect is None
    assert session.state is state


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("state", State)
def test_each_cell_of_a_wrong_frame_changes_nothing(state: State, name: str) -> None:
    session = make(state)
    session.last_id = 6
    payload, answer = WRONG[name]
    effect = session.receive(payload, 1.0)
    if state is State.CLOSED:
        assert effect is None
    else:
        assert isinstance(effect, Reply)
        assert error_of(effect) == answer
    assert session.state is state
    assert session.deferred is None


@pytest.mark.parametrize("state", State)
def test_another_version_ends_a_connection_that_has_not_begun(state: State) -> None:
    session = make(state)
    effect = session.receive(request("hello", 7, v=2), 1.0)
    if state is State.CLOSED:
        assert effect is None
        return
    assert error_of(effect) == (7, "bad_version")
    assert isinstance(effect, End if state is State.AWAIT_HELLO else Reply)


def test_what_came_before_welcome_comes_out_in_order() -> None:
    session = make(State.AWAIT_HELLO, burst=4)
    session.receive(request("hello", 1), 1.0)
    for n, t in enumerate(("send", "ping", "watch", "send"), 2):
        assert session.receive(request(t, n), 1.0) is None
    deferred = session.opened()
    assert session.state is State.LIVE
    assert session.deferred is None
    # The last was one too many a second: it waits with the others, for it may block a conversation
    # that is not known yet.
    assert [one.request.id if isinstance(one, Throttled) else one.id for one in deferred] == [2, 3, 4, 5]
    assert isinstance(deferred[-1], Throttled)


def test_too_many_requests_before_welcome_end_the_connection() -> None:
    session = make(State.OPENING)
    for n in range(1, DEFERRED_MAX + 1):
        assert session.receive(request("send", n), 1.0) is None
    effect = session.receive(request("send", DEFERRED_MAX + 1), 1.0)
    assert isinstance(effect, End)
    assert effect.code is CloseCode.OVERLOADED


def test_ids_must_grow_over_good_and_wrong_requests_alike() -> None:
    session = make()
    assert session.last_id == 0
    session.receive(request("ping", 5), 1.0)
    assert error_of(session.receive(request("ping", 5), 1.0)) == (5, "bad_id")
    assert error_of(session.receive(request("ack", 9, seq=0), 1.0)) == (9, "bad_seq")
    assert error_of(session.receive(request("ping", 9), 1.0)) == (9, "bad_id")
    assert error_of(session.receive(b"{", 1.0)) == (0, "bad_frame")
    assert session.last_id == 9
    assert isinstance(session.receive(request("ping", 10), 1.0), Request)


def test_unreadable_frames_end_the_connection_in_the_end() -> None:
    session = make()
    for _ in range(BAD_FRAMES_MAX):
        assert isinstance(session.receive(b"{", 1.0), Reply)
    effect = session.receive(b"{", 1.0)
    assert isinstance(effect, End)
    assert effect.code is CloseCode.BAD_FRAMES
    assert error_of(effect) == (0, "bad_frame")


def test_bounds_of_the_node_reach_the_decoder() -> None:
    session = Session(Silent(), TokenBucket(1, 10), 0.0, Bounds(body_bytes=2))
    assert error_of(session.receive(request("send", 1, body="hi!"), 1.0)) == (1, "too_long")


def test_a_frame_tells_that_the_session_is_active() -> None:
    session = make()
    session.receive(b"{", 3.5)
    assert session.active_at == 3.5


# ---- too many frames a second --------------------------------------------------------------------


def test_a_frame_too_many_is_refused_with_a_time_that_grows_and_then_ends_the_connection() -> None:
    session = make(burst=1)
    session.receive(request("ping", 1), 1.0)
    waits = []
    for n in range(2, THROTTLED_MAX + 2):
        effect = session.receive(request("send", n), 1.0)
        assert isinstance(effect, Throttled)
        assert effect.request.id == n
        waits.append(effect.retry_ms)
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (1_000, 30_000)
    effect = session.receive(request("ping", THROTTLED_MAX + 2), 1.0)
    assert isinstance(effect, End)
    assert effect.code is CloseCode.RATE_LIMITED


def test_who_is_a_little_too_fast_now_and_then_may_stay_for_ever() -> None:
    session = make(burst=1)
    session.receive(request("ping", 1), 0.0)
    now, id = 0.0, 1
    for _ in range(20):
        now += 500 / THROTTLED_FORGIVEN_PER_S
        for _ in range(500):
            id += 1
            assert isinstance(session.receive(request("ping", id), now), Throttled)
        assert session.throttled == 500


def test_who_goes_on_being_too_fast_is_closed_in_the_end() -> None:
    session = make(burst=1)
    session.receive(request("ping", 1), 0.0)
    effect = session.receive(request("ping", 2), 0.0)
    n = 2
    while isinstance(effect, Throttled):
        n += 1
        effect = session.receive(request("ping", n), n * 0.25 / THROTTLED_FORGIVEN_PER_S)
        assert n < 4 * THROTTLED_MAX
    assert isinstance(effect, End)
    assert effect.code is CloseCode.RATE_LIMITED
    assert n > THROTTLED_MAX + 300  # a quarter of them is forgiven


def test_wrong_frames_count_as_frames() -> None:
    session = make(burst=1)
    effects = [session.receive(request("ack", n, seq=0), 1.0) for n in range(1, THROTTLED_MAX + 3)]
    assert all(isinstance(effect, Reply) for effect in effects[:-1])
    assert isinstance(effects[-1], End)
    assert effects[-1].code is CloseCode.RATE_LIMITED


# ---- the rate of entries -------------------------------------------------------------------------


def fill(session: Session, now: float) -> None:
    for n in range(10):
        assert session.admit(CAROL, Cid(f"fill{n}"), now) == Verdict(False, now, False)


def limited(session: Session, peer: UserId, cid: Cid, id: int, resent_early: bool, now: float) -> errors.Refused | End:
    """A probe's answer: nothing is known of the cid."""
    session.order.probed(peer)
    return session.limited(peer, cid, id, resent_early, now)


def test_an_entry_over_the_rate_is_only_probed_for() -> None:
    session = make()
    fill(session, 100.0)
    assert session.admit(BOB, A, 101.0) == Verdict(True, 0.0, False)
    refused = limited(session, BOB, A, 1, False, 101.0)
    assert isinstance(refused, errors.RateLimited)
    assert refused.retry_ms == 4_000
    assert session.admit(BOB, A, 105.0) == Verdict(False, 105.0, False)


def test_what_follows_a_probe_in_its_conversation_is_a_probe_until_its_answer_is_in() -> None:
    session = make()
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
    phone, laptop = make(), make()
    laptop.user = phone.user
    fill(phone, 100.0)
    assert laptop.admit(BOB, A, 101.0) == Verdict(True, 0.0, False)


def test_coming_back_in_time_is_no_offence_also_if_another_device_was_quicker() -> None:
    phone, laptop = make(), make()
    user = laptop.user = phone.user
    assert user is not None
    fill(phone, 100.0)
    for session, peer, at in ((phone, BOB, 101.0), (laptop, BOB, 103.0)):
        session.admit(peer, A, at)
        refused = limited(session, peer, A, 1, False, at)
        assert isinstance(refused, errors.RateLimited)
        assert at + (refused.retry_ms or 0) / 1000 == 105.0
    for n in range(10):  # a third device takes all the room
        assert user.window.take(105.0) == 0.0, n
    for session, at in ((phone, 105.0), (laptop, 106.0)):
        assert session.admit(BOB, A, at) == Verdict(True, 0.0, False)
        assert isinstance(limited(session, BOB, A, 2, False, at), errors.RateLimited)
    assert user.penalty.until == 0.0


def test_a_timer_that_fires_a_little_early_is_no_offence() -> None:
    session = make()
    fill(session, 100.0)
    session.admit(BOB, A, 101.0)
    limited(session, BOB, A, 1, False, 101.0)
    assert session.admit(BOB, A, 105.0 - EARLY_SLACK_S) == Verdict(True, 0.0, False)


def test_coming_back_early_doubles_the_wait_for_all_of_the_user() -> None:
    session, other = make(), make()
    user = other.user = session.user
    assert user is not None
    fill(session, 100.0)
    session.admit(BOB, A, 101.0)
    limited(session, BOB, A, 1, False, 101.0)
    assert session.admit(BOB, A, 102.0) == Verdict(True, 0.0, True)
    refused = limited(session, BOB, A, 2, True, 102.0)
    assert isinstance(refused, errors.RateLimited)
    assert refused.retry_ms == 6_000  # twice the three seconds that were left
    assert user.penalty.until == 108.0
    assert other.admit(CAROL, B, 107.9) == Verdict(True, 0.0, False)
    assert session.admit(BOB, A, 108.0) == Verdict(False, 108.0, False)


def test_who_never_waits_is_closed() -> None:
    session = make(strikes=3)
    fill(session, 100.0)
    answers = []
    for n in range(6):
        verdict = session.admit(BOB, A, 101.0 + n / 100)
        assert isinstance(verdict, Verdict)
        answers.append(limited(session, BOB, A, n, verdict.resent_early, 101.0 + n / 100))
    assert [type(answer) for answer in answers] == [errors.RateLimited] * 4 + [End] * 2
    assert isinstance(answers[-1], End)
    assert answers[-1].code is CloseCode.RATE_LIMITED


def test_waiting_for_something_else_than_the_rate_is_no_offence() -> None:
    session = make()
    session.failed(BOB, A, 1, errors.Unavailable("away", retry_ms=1_000))
    assert session.admit(BOB, A, 1.0) == Verdict(False, 1.0, False)


@given(st.floats(0.001, 1e6), st.floats(0, 4.9))
def test_who_waits_the_milliseconds_told_gets_through(start: float, gap: float) -> None:
    session = make()
    fill(session, start)
    at = start + gap
    session.admit(BOB, A, at)
    refused = limited(session, BOB, A, 1, False, at)
    assert isinstance(refused, errors.RateLimited)
    back = at + (refused.retry_ms or 0) / 1000
    verdict = session.admit(BOB, A, back)
    assert isinstance(verdict, Verdict)
    assert (verdict.probe, verdict.resent_early) == (False, False)


# ---- the order of entries ------------------------------------------------------------------------

AWAY = errors.Unavailable("away", retry_ms=1_000)


def send(id: int, cid: Cid, to: UserId = BOB) -> Send:
    return Send(id, None, to, cid, "hi", False)


def blocker(answer: object) -> str | None:
    """The cid that an answer says is waited for."""
    return answer.cid if isinstance(answer, errors.Blocked) else None


def test_after_a_retryable_error_later_entries_of_that_conversation_wait_for_it() -> None:
    session = make()
    session.last_id = 1
    assert session.failed(BOB, A, 1, AWAY) is AWAY
    assert blocker(session.admit(BOB, B, 1.0)) == A
    assert isinstance(session.admit(CAROL, B, 1.0), Verdict)
    assert isinstance(session.admit(BOB, A, 1.0), Verdict)
    assert isinstance(session.admit(BOB, B, 1.0), Verdict)


def test_a_skip_frees_the_conversation_and_only_for_the_cid_waited_for() -> None:
    session = make()
    session.order.skip(BOB, A)
    session.failed(BOB, A, 1, AWAY)
    session.order.skip(BOB, B)
    session.order.skip(CAROL, A)
    assert blocker(session.admit(BOB, B, 1.0)) == A
    session.order.skip(BOB, A)
    assert isinstance(session.admit(BOB, B, 1.0), Verdict)


def test_who_has_read_that_it_must_wait_is_early_whatever_it_sends() -> None:
    session = make()
    assert session.user is not None
    for at in range(10):
        assert session.user.window.take(at / 10) == 0.0

    def judged(peer: UserId, cid: Cid, now: float) -> bool:
        verdict = session.admit(peer, cid, now)
        assert isinstance(verdict, Verdict)
        return verdict.resent_early

    assert judged(BOB, A, 1.0) is False
    assert not isinstance(session.limited(BOB, A, 1, False, 1.0), End)  # it is told to wait until 5.0
    assert judged(CAROL, B, 1.1) is False  # perhaps on its way before the refusal came
    session.order.skip(BOB, A)
    assert judged(BOB, B, 1.2) is True
    assert judged(CAROL, C, 5.0 - EARLY_SLACK_S - 0.001) is True
    assert session.order.arrive(CAROL, C, 1.2) is True
    assert judged(BOB, C, 5.0 - EARLY_SLACK_S) is False
    assert session.order.arrive(CAROL, C, 5.0) is False


def test_a_failure_that_names_no_time_makes_nothing_early() -> None:
    session = make()
    session.failed(BOB, A, 1, AWAY)
    session.order.skip(BOB, A)
    verdict = session.admit(BOB, B, 0.0)
    assert isinstance(verdict, Verdict)
    assert verdict.resent_early is False


def test_of_several_that_fail_together_the_first_is_waited_for() -> None:
    session = make()
    session.last_id = 3
    assert session.failed(BOB, A, 1, AWAY) is AWAY
    assert blocker(session.failed(BOB, B, 2, AWAY)) == A
    assert blocker(session.limited(BOB, C, 3, False, 1.0)) == A


def test_what_was_queued_behind_a_failed_entry_is_overtaken_also_once_that_is_back() -> None:
    session = make()
    session.last_id = 3
    session.failed(BOB, A, 1, AWAY)
    assert [session.order.overtaken(BOB, id) for id in (2, 3, 4)] == [A, A, None]
    assert session.order.overtaken(CAROL, 2) is None
    session.last_id = 4
    assert isinstance(session.admit(BOB, A, 1.0), Verdict)  # request 4
    assert [session.order.overtaken(BOB, id) for id in (2, 3, 4)] == [A, A, None]
    assert blocker(session.failed(BOB, B, 2, AWAY)) == A  # and if the lane had it already, it blocks nothing
    assert isinstance(session.admit(BOB, C, 1.0), Verdict)


def test_an_entry_that_got_no_place_waits_and_those_before_it_do_not() -> None:
    session = make()
    session.last_id = 5
    assert session.not_queued(BOB, send(5, B), AWAY) is AWAY
    assert blocker(session.admit(BOB, C, 1.0)) == B
    assert session.order.overtaken(BOB, 4) is None
    assert session.failed(BOB, A, 4, AWAY) is AWAY  # an earlier one fails: now that is waited for
    assert blocker(session.admit(BOB, B, 1.0)) == A
    assert isinstance(session.admit(BOB, A, 1.0), Verdict)
    assert isinstance(session.admit(BOB, B, 1.0), Verdict)


def test_a_later_one_that_got_no_place_changes_nothing() -> None:
    session = make()
    session.last_id = 2
    session.failed(BOB, A, 1, AWAY)
    assert blocker(session.not_queued(BOB, send(2, B), AWAY)) == A
    assert session.not_queued(BOB, send(3, A), AWAY) is AWAY


def test_twins_get_the_same_answer_and_keep_the_place_of_the_first() -> None:
    session = make()
    session.last_id = 9
    assert session.failed(BOB, A, 1, AWAY) is AWAY
    assert session.failed(BOB, A, 5, AWAY) is AWAY
    assert blocker(session.failed(BOB, B, 3, AWAY)) == A
    assert blocker(session.admit(BOB, B, 1.0)) == A


def test_an_entry_that_comes_in_and_has_to_wait_follows_the_same_rule() -> None:
    session = make()
    assert session.order.arrive(BOB, A, 1.0) is False
    session.not_queued(BOB, send(1, A), AWAY)
    assert blocker(session.order.arrive(BOB, B, 1.0)) == A
    assert session.order.arrive(BOB, A, 1.0) is False
    assert session.order.arrive(BOB, B, 1.0) is False


def test_an_entry_that_waited_knows_whether_it_came_too_early() -> None:
    session = make()
    fill(session, 100.0)
    assert session.judge(BOB, False, 101.0) == Verdict(True, 0.0, False)
    limited(session, BOB, A, 1, False, 101.0)
    resent_early = session.order.arrive(BOB, A, 102.0)
    assert resent_early is True
    assert session.judge(BOB, resent_early, 102.0) == Verdict(True, 0.0, True)


def test_what_fails_while_an_entry_waits_stops_it_as_in_a_lane() -> None:
    session = make()
    session.last_id = 5
    session.failed(BOB, A, 3, AWAY)
    assert [blocker(session.order.recheck(BOB, B, id)) for id in (4, 5)] == [A, A]
    assert blocker(session.order.recheck(BOB, A, 5)) == A  # a repeat that came before the failure is known, too
    assert session.order.recheck(CAROL, B, 5) is None
    session.last_id = 6
    assert session.order.arrive(BOB, A, 1.0) is False  # request 6: what comes behind it may follow
    assert blocker(session.order.recheck(BOB, B, 5)) == A  # but this one came before it
    assert session.order.recheck(BOB, A, 6) is None
    assert session.order.recheck(BOB, C, 7) is None


def test_what_gets_no_place_while_an_entry_waits_stops_only_what_came_after_it() -> None:
    session = make()
    session.last_id = 5
    assert session.not_queued(BOB, send(5, C), AWAY) is AWAY  # too many frames: refused on arrival
    assert session.order.recheck(BOB, A, 4) is None
    assert session.order.recheck(BOB, C, 3) is None  # an earlier try of the same: it does not free what is waited for
    assert blocker(session.order.arrive(BOB, B, 1.0)) == C
    assert session.not_queued(BOB, send(4, A), AWAY) is AWAY  # the lane was full when it came out
    assert blocker(session.order.recheck(BOB, B, 6)) == A
    assert session.order.recheck(BOB, A, 7) is None
    assert session.order.recheck(BOB, B, 8) is None


def test_a_skip_does_not_let_through_what_came_before_it() -> None:
    """It was to be refused, and another entry may have failed with the first: that one would be
    overtaken.
    """
    session = make()
    session.last_id = 3
    session.failed(BOB, A, 1, AWAY)
    assert blocker(session.failed(BOB, B, 2, AWAY)) == A
    session.order.skip(BOB, A)
    assert blocker(session.order.recheck(BOB, C, 3)) == A
    assert session.order.arrive(BOB, B, 1.0) is False


def test_an_idle_session_holds_no_maps() -> None:
    session = make()
    assert not hasattr(session, "__dict__")
    assert session.order is UNTROUBLED
    assert (session.deferred, session.behind, session.held) == (None,) * 3
