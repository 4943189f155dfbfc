"""The session's table of states, cell by cell; and the rules of order and rate, each by itself.

How they work together under losses and delays is in `test_session_order.py`.
"""

from __future__ import annotations

import json

import pytest

from chatd.core.effects import End, Reply, Throttled
from chatd.core.frame_rate import FORGIVEN_PER_S, THROTTLED_MAX, FrameRate
from chatd.core.rate_limit import Penalty, SlidingWindow
from chatd.core.send_order import UNTROUBLED
from chatd.core.session import BAD_FRAMES_MAX, DEFERRED_MAX, Session, State, User
from chatd.errors import CloseCode
from chatd.ids import Cid, DeviceId, UserId
from chatd.protocol import REQUEST_TYPES, Bounds, Hello, Request
from tests.samples import request
from tests.silent import Silent

ALICE, BOB, CAROL = (UserId(name) for name in ("alice", "bob", "carol"))
A, B, C = (Cid(c) for c in "abc")


def make(state: State = State.LIVE, *, burst: int = 10_000, strikes: int = 8) -> Session:
    session = Session(Silent(), FrameRate(1e-6, burst), 0.0)
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
    session = Session(Silent(), FrameRate(1, 10), 0.0, Bounds(body_bytes=2))
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
        now += 500 / FORGIVEN_PER_S
        for _ in range(500):
            id += 1
            assert isinstance(session.receive(request("ping", id), now), Throttled)
        assert session.frames.throttled == 500


def test_who_goes_on_being_too_fast_is_closed_in_the_end() -> None:
    session = make(burst=1)
    session.receive(request("ping", 1), 0.0)
    effect = session.receive(request("ping", 2), 0.0)
    n = 2
    while isinstance(effect, Throttled):
        n += 1
        effect = session.receive(request("ping", n), n * 0.25 / FORGIVEN_PER_S)
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


def test_an_idle_session_holds_no_maps() -> None:
    session = make()
    assert not hasattr(session, "__dict__")
    assert session.order is UNTROUBLED
    assert (session.deferred, session.behind, session.held) == (None,) * 3
