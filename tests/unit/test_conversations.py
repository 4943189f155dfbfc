"""Who is held: a walk through random sign-ins and sign-outs that checks the maps against each other
at every step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chatd.core.conversation import Conversation
from chatd.core.conversations import LINGER_S, NotHeld, Registry
from chatd.core.frame_rate import FrameRate
from chatd.core.gap import Gap
from chatd.core.rate_limit import Penalty, SlidingWindow
from chatd.core.session import Session, State, User
from chatd.core.snapshot import Snapshot
from chatd.core.unused import Unused
from chatd.errors import NoConversation
from chatd.ids import ConvId, DeviceId, UserId
from tests.silent import Silent

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMES = [UserId(name) for name in ("alice", "bob", "carol")]
PAIRS = [(a, b) for a in NAMES for b in NAMES if a <= b]  # the log of each pair, notes to oneself too
IDS = {pair: ConvId(n) for n, pair in enumerate(PAIRS, 1)}
PHONE, LAPTOP = DeviceId("phone"), DeviceId("laptop")


def session() -> Session:
    return Session(Silent(), FrameRate(100, 400), 0.0)


def make_user(id: UserId) -> User:
    return User(id, SlidingWindow(10, 5.0), Penalty(8), SlidingWindow(100, 3600.0))


names = st.sampled_from(NAMES)
devices = st.sampled_from([PHONE, LAPTOP])


class RegistryModel(RuleBasedStateMachine):
    """`at_work` are conversations that the test has given work, by their very object: it must stay
    the one in memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        self.now = 1_000.0
        self.sessions: dict[tuple[UserId, DeviceId], Session] = {}
        self.left: dict[UserId, float] = {}
        self.at_work: list[Conversation] = []

    def load(self, user: User) -> None:
        """As `opening` reads the conversations of a user from the database."""
        for pair, id in IDS.items():
            if user.id in pair:
                self.registry.link(user, self.registry.hold(id, *pair))
        user.loaded = True

    @rule(name=names, device=devices, loads=st.booleans())
    def sign_in(self, name: UserId, device: DeviceId, loads: bool) -> None:
        user = self.registry.users.get(name)
        if user is None:
            user = make_user(name)
            self.registry.add_user(user, self.now)
        old, new = self.sessions.get((name, device)), session()
        self.sessions[name, device] = new
        self.left.pop(name, None)
        self.registry.attach(user, device, new)
        if loads:
            self.load(user)
        if old is not None:  # it was replaced: its end holds and frees nothing
            self.registry.detach(user, device, old, self.now)
            assert user.sessions[device] is new

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def sign_out(self, data: st.DataObject) -> None:
        name, device = data.draw(st.sampled_from(sorted(self.sessions)))
        gone = self.sessions.pop((name, device))
        self.registry.detach(self.registry.users[name], device, gone, self.now)
        if not any(n == name for n, _ in self.sessions):
            self.left[name] = self.now

    @precondition(lambda self: self.registry.convs)
    @rule(data=st.data())
    def work_begins(self, data: st.DataObject) -> None:
        conv = self.registry.convs[data.draw(st.sampled_from(sorted(self.registry.convs)))]
        conv.pending += 1
        self.at_work.append(conv)

    @precondition(lambda self: self.at_work)
    @rule()
    def work_ends(self) -> None:
        self.at_work.pop().pending -= 1

    @rule(by=st.sampled_from([1.0, LINGER_S / 2, LINGER_S]))
    def later(self, by: float) -> None:
        self.now += by
        due = {name for name, at in self.left.items() if at <= self.now - LINGER_S}
        gone = self.registry.release(self.now)
        assert sorted(gone) == sorted(due)
        for name in due:
            del self.left[name]
        assert self.convs_at(self.registry.convs.values()) == self.convs_at(
            conv
            for conv in self.registry.convs.values()
            if conv.pending or conv.a in self.registry.users or conv.b in self.registry.users
        )

    @staticmethod
    def convs_at(convs: Iterable[Conversation]) -> list[ConvId]:
        return sorted(conv.id for conv in convs)

    @invariant()
    def users_are_held_while_they_have_a_session_and_a_while_after(self) -> None:
        with_sessions = {name for name, _ in self.sessions}
        assert set(self.registry.users) == with_sessions | set(self.left)
        for name, user in self.registry.users.items():
            assert user.sessions == {device: s for (n, device), s in self.sessions.items() if n == name}
            assert (user.idle_since is None) == (name in with_sessions)

    @invariant()
    def there_is_one_object_for_each_log(self) -> None:
        convs = self.registry.convs
        assert all(convs[conv.id] is conv for conv in self.at_work)
        for user in self.registry.users.values():
            for peer, conv in user.peers.items():
                assert convs[conv.id] is conv
                assert {user.id, peer} == {conv.a, conv.b}
            if user.loaded:
                assert self.convs_at(user.peers.values()) == sorted(id for pair, id in IDS.items() if user.id in pair)


TestRegistryModel = RegistryModel.TestCase


def test_a_conversation_is_let_go_with_its_last_user_also_if_that_one_was_never_loaded() -> None:
    registry = Registry()
    alice, bob = make_user(NAMES[0]), make_user(NAMES[1])
    registry.add_user(alice, 0.0)
    registry.hold(ConvId(1), alice.id, bob.id)
    registry.add_user(bob, 0.0)  # its hello fails before the listing
    for user, at in ((alice, 0.0), (bob, 10.0)):
        one = session()
        registry.attach(user, PHONE, one)
        registry.detach(user, PHONE, one, at)
    assert registry.release(60.0) == [alice.id]
    assert list(registry.convs) == [1]
    assert registry.release(70.0) == [bob.id]
    assert not registry.convs


def test_who_has_never_had_a_session_is_let_go_too() -> None:
    """Their hello was refused after their rate was counted: each such name stayed in memory for
    ever.
    """
    registry = Registry()
    alice, bob = make_user(NAMES[0]), make_user(NAMES[1])
    registry.add_user(alice, 5.0)
    registry.add_user(bob, 10.0)
    registry.hold(ConvId(1), alice.id, bob.id)
    registry.attach(bob, PHONE, one := session())
    assert registry.release(65.0) == [alice.id]
    assert list(registry.users) == [bob.id]
    registry.detach(bob, PHONE, one, 70.0)
    assert registry.release(130.0) == [bob.id]
    assert not registry.convs


def test_a_conversation_at_work_outlives_its_users() -> None:
    registry = Registry()
    alice = make_user(NAMES[0])
    registry.add_user(alice, 0.0)
    conv = registry.hold(ConvId(1), NAMES[0], NAMES[1])
    conv.gap = Gap(1)
    registry.detach(alice, PHONE, session(), 0.0)
    assert registry.release(60.0) == [alice.id]
    assert registry.hold(ConvId(1), NAMES[0], NAMES[1]) is conv
    registry.release(61.0)
    conv.gap = None
    assert list(registry.convs) == [1]
    registry.release(62.0)
    assert list(registry.convs) == []


def test_a_late_end_of_a_replaced_session_does_not_keep_others() -> None:
    registry = Registry()
    alice, bob = make_user(NAMES[0]), make_user(NAMES[1])
    for user, at in ((alice, 0.0), (bob, 10.0)):
        registry.add_user(user, at)
        registry.detach(user, PHONE, session(), at)
    registry.detach(alice, PHONE, session(), 50.0)
    assert registry.release(70.0) == [bob.id]
    assert registry.release(109.0) == []
    assert registry.release(110.0) == [alice.id]


# ---- limits outlive their user -------------------------------------------------------------------


def come_and_go(registry: Registry, id: UserId, at: float) -> User:
    user = make_user(id)
    registry.add_user(user, at)
    registry.detach(user, PHONE, session(), at)
    return user


def test_who_comes_back_has_the_same_hour_and_the_same_penalty() -> None:
    registry = Registry()
    alice = come_and_go(registry, NAMES[0], 100.0)
    alice.new_convs.take(90.0)
    alice.penalty.refused(95.0, 1.0, True)
    assert registry.release(160.0) == [alice.id]
    again = make_user(alice.id)
    registry.add_user(again, 160.0)
    assert (again.window, again.penalty, again.new_convs) == (alice.window, alice.penalty, alice.new_convs)
    fresh = come_and_go(registry, NAMES[1], 200.0)
    assert registry.release(260.0) == [alice.id, fresh.id]  # nothing counts against this one
    again = make_user(fresh.id)
    registry.add_user(again, 300.0)
    assert again.new_convs is not fresh.new_convs


def test_what_has_passed_is_forgotten() -> None:
    registry = Registry()
    alice, bob = (come_and_go(registry, name, 100.0) for name in NAMES[:2])
    alice.new_convs.take(100.0)
    bob.penalty.refused(100.0, 1.0, True)  # until 102, and remembered for a minute
    registry.release(160.0)
    assert set(registry._kept) == {alice.id, bob.id}
    registry.release(162.0)
    assert set(registry._kept) == {alice.id, bob.id}  # it stands behind one that counts longer
    registry.release(3_699.0)
    assert alice.id in registry._kept
    registry.release(3_700.0)
    assert not registry._kept


def test_what_is_kept_is_bounded_and_the_longest_gone_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatd.core.conversations.KEPT_MAX", 3)
    registry = Registry()
    for n in range(5):
        come_and_go(registry, UserId(f"u{n}"), 100.0 + n).new_convs.take(100.0)
        registry.release(161.0 + n)
    assert list(registry._kept) == ["u2", "u3", "u4"]


def test_cursors_only_go_forward_and_reading_implies_delivery() -> None:
    conv = Conversation(ConvId(1), NAMES[0], NAMES[1])
    assert conv.advance(0, 5, 3)
    assert conv.cursor(0) == (5, 3)
    assert not conv.advance(0, 4, 2)
    assert conv.cursor(0) == (5, 3)
    assert conv.advance(0, 0, 9)
    assert conv.cursor(0) == (9, 9)
    assert conv.cursor(1) == (0, 0)
    assert conv.advance(1, 1, 0)
    assert conv.cursor(1) == (1, 0)


def test_the_sides_of_a_conversation() -> None:
    conv = Conversation(ConvId(1), NAMES[0], NAMES[1])
    assert (conv.side(NAMES[0]), conv.side(NAMES[1])) == (0, 1)
    assert (conv.peer(NAMES[0]), conv.peer(NAMES[1])) == (NAMES[1], NAMES[0])
    notes = Conversation(ConvId(2), NAMES[0], NAMES[0])
    assert (notes.side(NAMES[0]), notes.peer(NAMES[0])) == (0, NAMES[0])


def test_a_conversation_is_open_once_both_have_sent_and_notes_always() -> None:
    conv = Conversation(ConvId(1), NAMES[0], NAMES[1])
    opens = [conv.open]
    for conv.na, conv.nb in ((3, 0), (0, 3), (3, 1)):
        opens.append(conv.open)
    assert opens == [False, False, False, True]
    assert Conversation(ConvId(2), NAMES[0], NAMES[0]).open


# ---- a node that holds what is in use ------------------------------------------------------------

BEFORE, SINCE = Snapshot("100:100:", 1), 100  # a listing, and the first transaction that it does not see


def lonely() -> tuple[Registry, User, Session]:
    """Alice has a session that was listed in `BEFORE`."""
    registry, alice, one = Registry(holds_all=False), make_user(NAMES[0]), session()
    registry.add_user(alice, 0.0)
    registry.attach(alice, PHONE, one)
    one.state = State.LIVE
    registry.listed(alice, BEFORE)
    return registry, alice, one


def load(registry: Registry, head: int, xid: int) -> bool:
    """Her conversation with bob comes into memory; whether she has all of it."""
    conv = registry.hold(ConvId(1), NAMES[0], NAMES[1])
    conv.head = head
    return not registry.loaded(conv, xid, 1)


def let_go(registry: Registry) -> bool:
    """All that may be; whether something was."""
    for conv in registry.convs.values():
        conv.is_used = False
    registry._unused = Unused()  # the one conversation of these tests is in the first part of a round
    return registry.let_go_unused(lambda conv: False) > 0


def test_what_is_not_held_is_asked_for_and_what_was_looked_for_is_missing() -> None:
    registry, alice, _ = lonely()
    for c, to in ((ConvId(1), None), (None, NAMES[1])):
        with pytest.raises(NotHeld) as missing:
            registry.find(alice, c, to)
        registry.sought = (alice.id, missing.value.key)
        with pytest.raises(NoConversation):
            registry.find(alice, c, to)
        registry.sought = None
    conv = registry.hold(ConvId(1), NAMES[0], NAMES[1])
    conv.head = 1
    assert registry.find(alice, ConvId(1), None) is registry.find(alice, None, NAMES[1]) is conv


def test_a_log_that_was_listed_is_known_and_one_that_others_wrote_to_since_is_not() -> None:
    assert load(lonely()[0], 5, SINCE - 1)
    assert not load(lonely()[0], 5, SINCE)


def test_a_log_that_was_written_to_here_is_known_when_it_is_loaded_again() -> None:
    registry, _, _ = lonely()
    assert load(registry, 5, SINCE - 1)
    registry.convs[ConvId(1)].head = 6
    assert let_go(registry)
    for _ in range(3):  # also if it got nothing in its last stay
        assert load(registry, 6, SINCE + 7)
        assert let_go(registry)
    assert not load(registry, 7, SINCE + 9), "somebody else has written"


def test_who_was_listed_since_has_all_of_it_whatever_the_other_one_lacks() -> None:
    registry, alice, _ = lonely()
    bob = make_user(NAMES[1])
    registry.add_user(bob, 0.0)
    registry.attach(bob, PHONE, session())
    registry.listed(bob, Snapshot("200:200:", 1))
    conv = registry.hold(ConvId(1), NAMES[0], NAMES[1])
    conv.head = 5
    assert registry.loaded(conv, SINCE, 1) == [alice]


def test_a_new_session_is_compared_with_its_own_listing() -> None:
    registry, alice, one = lonely()
    registry.detach(alice, PHONE, one, 1.0)
    registry.attach(alice, PHONE, two := session())
    assert load(registry, 5, SINCE), "it was not listed yet"
    assert alice.unproven == SINCE
    two.state = State.OPENING
    assert not let_go(registry), "its item is made from memory"
    registry.listed(alice, Snapshot("200:200:", 1))
    registry.listed(alice, Snapshot("300:300:", 1))
    assert alice.snapshot == Snapshot("200:200:", 1), "that of the session that was listed first"


@pytest.mark.parametrize("what", ["pending", "gap", "reads", "behind", "held", "opening", "used", "needed"])
def test_what_is_at_work_is_not_let_go(what: str) -> None:
    registry, alice, one = lonely()
    load(registry, 5, 1)
    conv = registry.convs[ConvId(1)]
    conv.is_used = what == "used"
    if what == "pending":
        conv.pending = 1
    elif what == "gap":
        conv.gap = Gap(6)
    elif what == "reads":
        alice.reads = 1
    elif what == "behind":
        one.filled(conv.id, 3)
    elif what == "held":
        one.hold(conv.id, 3, b"")
    elif what == "opening":
        one.state = State.OPENING
    assert registry.let_go_unused(lambda conv: what == "needed") == 0
    assert registry.convs
