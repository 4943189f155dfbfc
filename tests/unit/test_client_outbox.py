"""The outbox against a model of the server: nothing twice, nothing lost, order kept, "failed" only
what is not in the log.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from chatd.client.errors import OutboxFull
from chatd.client.outbox import (
    FLYING_MAX,
    NOT_DONE,
    RETRY_MARGIN_S,
    SKIP_PAUSE_S,
    WINDOW_MAX,
    Item,
    Outbox,
    State,
    Then,
)
from tests.fix_costs import lines_run

PEERS = ("bob", "carol", "dan")


def send(outbox: Outbox, peer: str, n: int) -> Item:
    return outbox.add(peer, f"cid-{n}", "message", f"text {n}", None)


def cids(batch: list[tuple[Item, bool]]) -> list[str]:
    return [item.cid for item, _ in batch]


# ---- claims --------------------------------------------------------------------------------------


def test_a_first_try_says_no_retry_and_later_ones_do() -> None:
    outbox = Outbox()
    item = send(outbox, "bob", 1)
    assert outbox.next(0.0) == [(item, False)]
    assert outbox.next(0.0) == []
    outbox.disconnected()
    assert outbox.next(0.0) == [(item, True)]


def test_sends_are_pipelined_a_window_deep() -> None:
    outbox = Outbox()
    for n in range(WINDOW_MAX + 5):
        send(outbox, "bob", n)
    assert cids(outbox.next(0.0)) == [f"cid-{n}" for n in range(WINDOW_MAX)]
    outbox.settle("bob", "cid-0")
    assert cids(outbox.next(0.0)) == [f"cid-{WINDOW_MAX}"]


def test_a_retryable_refusal_waits_and_then_goes_on_from_there_one_at_a_time() -> None:
    outbox = Outbox()
    items = [send(outbox, "bob", n) for n in range(4)]
    outbox.next(0.0)
    assert outbox.refuse(items[0], "overloaded", 1_000, None, 10.0) is Then.AGAIN
    for item in items[1:]:
        assert outbox.refuse(item, "blocked", None, "cid-0", 10.0) is Then.AGAIN
    assert outbox.next(10.9) == []
    assert outbox.wake_at() == pytest.approx(11.0 + RETRY_MARGIN_S)
    assert cids(outbox.next(11.1)) == ["cid-0"]
    outbox.settle("bob", "cid-0")
    assert cids(outbox.next(11.1)) == ["cid-1", "cid-2"]


def test_only_rate_limited_holds_up_the_other_conversations() -> None:
    outbox = Outbox()
    first = send(outbox, "bob", 1)
    outbox.next(0.0)
    outbox.refuse(first, "unavailable", 1_000, None, 0.0)
    second = send(outbox, "carol", 2)
    assert outbox.next(0.0) == [(second, False)]
    outbox.refuse(second, "rate_limited", 5_000, None, 0.0)
    send(outbox, "dan", 3)
    assert outbox.next(4.9) == []
    assert len(outbox.next(5.1)) == 1  # and then a single one goes ahead, over all conversations


def test_a_foreign_block_is_given_up_after_a_pause() -> None:
    outbox = Outbox()
    item = send(outbox, "bob", 1)
    outbox.next(0.0)
    assert outbox.refuse(item, "blocked", None, "not-ours", 0.0) is Then.SKIP
    assert outbox.next(SKIP_PAUSE_S / 2) == []
    assert outbox.next(SKIP_PAUSE_S) == [(item, True)]


def test_an_unknown_code_is_judged_by_retry_ms_alone() -> None:
    outbox = Outbox()
    one, two = send(outbox, "bob", 1), send(outbox, "carol", 2)
    outbox.next(0.0)
    assert outbox.refuse(one, "from_the_future", 100, None, 0.0) is Then.AGAIN
    assert one.outcome_unknown
    assert outbox.refuse(two, "from_the_future", None, None, 0.0) is Then.FAILED
    assert outbox.size == 1


def test_only_what_is_surely_not_stored_can_be_taken_back() -> None:
    outbox = Outbox()
    queued = send(outbox, "bob", 1)
    assert outbox.abandon(queued) is Then.GONE
    sent = send(outbox, "bob", 2)
    outbox.next(0.0)
    assert outbox.abandon(sent) is Then.AGAIN
    outbox.refuse(sent, "rate_limited", 100, None, 0.0)
    assert outbox.abandon(sent) is Then.SKIP
    lost = send(outbox, "carol", 3)
    outbox.next(1.0)
    outbox.disconnected()
    outbox.next(1.0)
    outbox.refuse(lost, "rate_limited", 100, None, 0.0)  # this try was not done; the one before may have been
    assert outbox.abandon(lost) is Then.AGAIN


def test_a_refusal_that_comes_after_the_entry_itself_changes_nothing() -> None:
    outbox = Outbox()
    item = send(outbox, "bob", 1)
    outbox.next(0.0)
    assert outbox.settle("bob", item.cid) is item
    assert outbox.refuse(item, "unavailable", 100, None, 0.0) is Then.AGAIN
    assert outbox.settle("bob", item.cid) is None
    assert outbox.size == 0
    other = send(outbox, "bob", 2)
    assert outbox.next(0.0) == [(other, False)]


def test_after_a_refusal_nothing_goes_out_before_all_that_was_on_its_way_is_answered() -> None:
    outbox = Outbox()
    first, second, third, last = (send(outbox, "bob", n) for n in range(4))
    assert len(outbox.next(0.0)) == 4
    outbox.refuse(first, "rate_limited", 100, None, 0.0)
    outbox.refuse(second, "blocked", None, first.cid, 0.0)
    assert outbox.next(1.0) == []
    outbox.refuse(third, "blocked", None, first.cid, 1.0)
    outbox.refuse(last, "blocked", None, first.cid, 1.0)
    assert outbox.next(1.0) == [(first, True)]


def test_another_epoch_keeps_sends_and_drops_changes() -> None:
    outbox = Outbox()
    kept = send(outbox, "bob", 1)
    edit = outbox.add("bob", "cid-2", "edit", "x", 7)
    delete = outbox.add("carol", "cid-3", "delete", None, 7)
    assert outbox.new_epoch() == [edit, delete]
    assert outbox.next(0.0) == [(kept, False)]


def test_changes_by_cid_stay_over_an_epoch_and_name_no_place_any_more() -> None:
    outbox = Outbox()
    edit = outbox.add("bob", "cid-2", "edit", "x", 7, refcid="cid-1")
    gone = outbox.add("bob", "cid-3", "delete", None, 8)
    assert outbox.new_epoch() == [gone]
    assert (edit.ref, edit.refcid) == (None, "cid-1")
    again = Outbox()
    again.restore(outbox.save())
    ((item, retry),) = again.next(0.0)
    assert (item.cid, item.ref, item.refcid, retry) == ("cid-2", None, "cid-1", True)
    # As earlier releases saved it
    again.restore([{"peer": "bob", "cid": "cid-9", "kind": "delete", "body": None, "ref": 3}])
    assert again.size == 2


def test_a_saved_outbox_goes_on_with_retry_in_order() -> None:
    outbox = Outbox()
    for n in range(3):
        send(outbox, "bob", n)
    again = Outbox()
    again.restore(outbox.save())
    assert [(item.cid, retry) for item, retry in again.next(0.0)] == [("cid-0", True), ("cid-1", True), ("cid-2", True)]
    assert again.save() == outbox.save()


def test_the_same_cid_twice_is_one_item_and_in_another_conversation_another() -> None:
    outbox = Outbox()
    one = send(outbox, "bob", 1)
    assert send(outbox, "bob", 1) is one
    assert send(outbox, "carol", 1) is not one
    assert outbox.size == 2


def test_it_is_bounded() -> None:
    outbox = Outbox(items_max=2)
    send(outbox, "bob", 1)
    send(outbox, "bob", 2)
    with pytest.raises(OutboxFull):
        send(outbox, "carol", 3)
    outbox.settle("bob", "cid-1")
    send(outbox, "carol", 3)


def test_oks_of_before_a_refusal_let_nothing_overtake_what_has_no_answer_yet() -> None:
    """The server refuses at once what finds no room, and answers what came before it once that is
    stored.
    """
    outbox = Outbox()
    items = [send(outbox, "bob", n) for n in range(5)]
    outbox.next(0.0)
    outbox.refuse(items[3], "overloaded", 100, None, 0.0)
    for n in range(3):
        outbox.settle("bob", f"cid-{n}")
    send(outbox, "bob", 5)
    assert outbox.next(1.0) == [], "cid-4 is still to be refused"
    assert outbox.wake_at() is None
    outbox.refuse(items[4], "blocked", None, "cid-3", 1.0)
    assert cids(outbox.next(1.0)) == ["cid-3"]
    outbox.settle("bob", "cid-3")
    assert cids(outbox.next(1.0)) == ["cid-4", "cid-5"]


def test_conversations_take_turns_where_the_window_over_all_is_small() -> None:
    outbox = Outbox()
    trigger = send(outbox, "ann", 0)
    outbox.next(0.0)
    for n in range(3):
        send(outbox, "bob", n)
        send(outbox, "carol", n)
    outbox.refuse(trigger, "rate_limited", 0, None, 0.0)
    order = []
    for _ in range(7):
        for item, _retry in outbox.next(1.0)[:1]:
            order.append(item.peer)
            outbox.settle(item.peer, item.cid)
            outbox._window = 1  # stays narrow
    assert sorted(order[:3]) == ["ann", "bob", "carol"]


class Watched(OrderedDict[str, Any]):
    """Whoever goes through it runs a line for each: what C would do unseen
    (`list(queue.items.values())`) is counted, too.
    """

    def values(self) -> Any:
        for value in super().values():  # noqa: UP028 (`yield from` is one line)
            yield value

    def items(self) -> Any:
        for item in super().items():  # noqa: UP028
            yield item

    def __iter__(self) -> Iterator[str]:
        for key in super().__iter__():  # noqa: UP028
            yield key


@pytest.mark.parametrize("per_peer", [10, 10_000])
def test_no_step_costs_more_in_a_long_outbox(per_peer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the items take ten times the steps, in many conversations and in one."""
    monkeypatch.setattr("chatd.client.outbox.OrderedDict", Watched)

    def drain(n: int) -> None:
        outbox = Outbox()
        for i in range(n):
            outbox.add(f"peer-{i // per_peer}", f"{i}", "message", "x", None)
        now = 0.0
        while outbox.size:
            for item, _ in outbox.next(now):
                if int(item.cid) % 7 or item.code:
                    outbox.settle(item.peer, item.cid)
                else:
                    outbox.refuse(item, "unavailable", 100, None, now)
            now = max(now, outbox.wake_at() or 0.0)

    assert lines_run(lambda: drain(2_000)) < 10.5 * lines_run(lambda: drain(200))


# ---- against a model of the server ---------------------------------------------------------------


class Reply(NamedTuple):
    item: Item
    code: str | None  # None: ok
    retry_ms: int | None = None
    cid: str | None = None


class Server:
    """What docs/protocol.md section 5 says, for one session; the log outlives sessions.

    `whim` decides what befalls an entry.
    """

    def __init__(self) -> None:
        self.logs: dict[str, list[str]] = {peer: [] for peer in PEERS}
        self.blocked: dict[str, str] = {}
        self.unwanted: set[str] = set()  # refused for good: for a reason that stays

    def take(self, item: Item, whim: str) -> Reply:
        waiting = self.blocked.get(item.peer)
        if waiting not in (None, item.cid):
            return Reply(item, "blocked", None, waiting)
        self.blocked.pop(item.peer, None)
        log = self.logs[item.peer]
        if item.cid in log:
            return Reply(item, None)
        match "refused" if item.cid in self.unwanted else whim:
            case "ok":
                log.append(item.cid)
                return Reply(item, None)
            case "refused":
                self.unwanted.add(item.cid)
                return Reply(item, "bad_text")
            case "unavailable, stored":
                log.append(item.cid)
                whim = "unavailable"
            case _:
                pass
        self.blocked[item.peer] = item.cid
        return Reply(item, whim, 100)


WHIMS = st.sampled_from(
    ["ok", "ok", "ok", "refused", "unavailable", "unavailable, stored", "rate_limited", "overloaded"]
)


class OutboxAgainstServer(RuleBasedStateMachine):
    items = Bundle("items")

    @initialize()
    def start(self) -> None:
        self.outbox = Outbox()
        self.server = Server()
        self.now = 0.0
        self.n = 0
        self.awaited: set[str] = set()  # of this process, and not abandoned
        self.said: dict[str, list[str]] = {peer: [] for peer in PEERS}  # in the order of `add`
        self.failed: set[str] = set()
        self.taken_back: set[str] = set()
        self.settled: set[str] = set()
        self.out: deque[Item | tuple[str, str]] = deque()  # on the way to the server; a pair is a skip
        self.back: deque[Reply] = deque()

    @rule(target=items, peer=st.sampled_from(PEERS))
    def add(self, peer: str) -> Item:
        self.n += 1
        self.awaited.add(f"cid-{self.n}")
        self.said[peer].append(f"cid-{self.n}")
        return send(self.outbox, peer, self.n)

    @rule()
    def pump(self) -> None:
        for item, retry in self.outbox.next(self.now):
            assert item.state is State.SENT
            assert retry or item.cid not in self.server.logs[item.peer], (
                "may have been stored, and the server is not told to look"
            )
            self.out.append(item)

    @rule(whim=WHIMS)
    def server_takes(self, whim: str) -> None:
        if not self.out:
            return
        what = self.out.popleft()
        if isinstance(what, Item):
            self.back.append(self.server.take(what, whim))
        elif self.server.blocked.get(what[0]) == what[1]:
            del self.server.blocked[what[0]]

    @rule()
    def client_hears(self) -> None:
        if self.back:
            self._hear(self.back.popleft())

    def _hear(self, reply: Reply) -> None:
        item = reply.item
        if reply.code is None:
            if self.outbox.settle(item.peer, item.cid) is not None:
                self.settled.add(item.cid)
            return
        match self.outbox.refuse(item, reply.code, reply.retry_ms, reply.cid, self.now):
            case Then.FAILED:
                self.failed.add(item.cid)
            case Then.SKIP:
                assert reply.cid is not None
                self.out.append((item.peer, reply.cid))

    @rule(item=items)
    def own_entry_comes(self, item: Item) -> None:
        if item.cid in self.server.logs[item.peer] and self.outbox.settle(item.peer, item.cid) is not None:
            self.settled.add(item.cid)

    @rule(item=items)
    def abandon(self, item: Item) -> None:
        if item.cid not in self.awaited - self.settled - self.failed:
            return
        self.awaited.remove(item.cid)
        then = self.outbox.abandon(item)
        if then is Then.AGAIN:
            return
        self.taken_back.add(item.cid)
        if then is Then.SKIP:
            self.out.append((item.peer, item.cid))

    @rule()
    def time_passes(self) -> None:
        at = self.outbox.wake_at()
        self.now = max(self.now, at) if at is not None else self.now + 0.01

    @rule()
    def cut(self) -> None:
        self.out.clear()
        self.back.clear()
        self.server.blocked.clear()
        self.outbox.disconnected()

    @rule()
    def restart(self) -> None:
        self.cut()
        self.awaited.clear()
        saved = self.outbox.save()
        self.outbox = Outbox()
        self.outbox.restore(saved)

    @invariant()
    def nothing_twice_and_in_order(self) -> None:
        for peer, log in self.server.logs.items():
            said = self.said[peer]
            assert [said.index(cid) for cid in log] == sorted({said.index(cid) for cid in log})
            assert not (self.failed | self.taken_back) & set(log), "what is called failed or taken back is in the log"

    @invariant()
    def no_more_is_on_its_way_than_allowed(self) -> None:
        assert 0 <= self.outbox._flying <= FLYING_MAX

    def teardown(self) -> None:
        """A server in good health gets the rest, without a further cut."""
        for _ in range(20 * (self.n + 1)):
            self.time_passes()
            self.pump()
            while self.out:
                self.server_takes("ok")
            while self.back:
                self.client_hears()
        assert self.outbox.size == 0, "something waits for ever"
        for peer, log in self.server.logs.items():
            assert log == [cid for cid in self.said[peer] if cid not in self.failed | self.taken_back]
        self.nothing_twice_and_in_order()


TestOutboxAgainstServer = OutboxAgainstServer.TestCase
TestOutboxAgainstServer.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_every_refusal_that_says_not_done_is_one_the_protocol_lists() -> None:
    from chatd import errors

    codes = {cls.code for cls in (*errors.ClientFault.__subclasses__(), *errors.Retryable.__subclasses__())}
    assert codes >= NOT_DONE
