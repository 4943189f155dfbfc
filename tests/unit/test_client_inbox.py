"""The inbox against a model of the server: every entry once and in order, over cuts, restarts,
retention, small hellos and a slow app.
"""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chatd.client.frames import ConversationItem, Entry, Limits, Page, Reset, Welcome
from chatd.client.inbox import Inbox, Step
from chatd.client.values import Kind

ROOM = 8_000
QUEUE_MAX = 4
RESYNC_MAX = 3  # entries of one conversation that the model server sends by itself
PAGE_ROWS = 3


def entry(c: str, seq: int, kind: Kind = "message") -> Entry:
    return Entry(c, f"peer-{c}", seq, 1_000 + seq, False, kind, f"text {seq}")


def item(c: str, head: int, floor: int = 1, **more: bool) -> ConversationItem:
    return ConversationItem(c, f"peer-{c}", head, floor, 1_000 + head, 0, 0, 0, 0, 0, True, **more)


def welcome(*items: ConversationItem, epoch: str = "e1", since: str = "1") -> Welcome:
    return Welcome("me", epoch, 0, None, Limits(), items, (), since)


def taken(inbox: Inbox) -> list[tuple[str, int]]:
    out = []
    while (e := inbox.take()) is not None:
        out.append((e.c, e.seq))
    return out


def page(c: str, seqs: range, head: int, floor: int = 1) -> Page:
    return Page(c, tuple(entry(c, seq) for seq in seqs), False, head, floor)


# ---- claims --------------------------------------------------------------------------------------


def test_a_first_welcome_starts_at_the_heads_and_a_first_hello_names_nothing() -> None:
    inbox = Inbox()
    assert inbox.hello(ROOM) == {}
    inbox.enter(welcome(item("1", 5)))
    assert inbox.want() is None
    assert [inbox.push(entry("1", seq)) for seq in (5, 6, 6, 8)] == [Step.KNOWN, Step.NEW, Step.KNOWN, Step.JUMP]
    assert taken(inbox) == [("1", 6)]


def test_a_conversation_that_began_while_away_is_fetched_from_its_start() -> None:
    inbox = Inbox()
    inbox.enter(welcome())
    assert inbox.hello(ROOM) == {"epoch": "e1", "since": "1", "cursors": {}}
    inbox.enter(welcome(item("7", 2)))
    assert inbox.want() == ("7", 0)
    assert inbox.fetched(0, page("7", range(1, 3), 2)) == (True, [])
    assert taken(inbox) == [("7", 1), ("7", 2)]


def test_too_much_to_send_is_fetched_and_live_entries_wait_for_it() -> None:
    inbox = Inbox()
    inbox.enter(welcome(item("1", 5)))
    assert inbox.hello(ROOM)["cursors"] == {"1": 5}
    inbox.enter(welcome(item("1", 9, page=True)))
    assert inbox.push(entry("1", 10)) is Step.BEHIND
    assert inbox.want() == ("1", 5)
    inbox.fetched(5, page("1", range(6, 9), 10))
    assert inbox.want() == ("1", 8)
    inbox.fetched(8, page("1", range(9, 11), 10))
    assert inbox.push(entry("1", 11)) is Step.NEW
    assert taken(inbox) == [("1", seq) for seq in range(6, 12)]


def test_a_full_queue_leaves_the_rest_to_history_and_drops_nothing() -> None:
    inbox = Inbox(queue_max=2)
    inbox.enter(welcome(item("1", 0)))
    assert [inbox.push(entry("1", seq)) for seq in (1, 2, 3, 4)] == [Step.NEW, Step.NEW, Step.BEHIND, Step.BEHIND]
    assert inbox.want() is None, "there is no room"
    assert inbox.take() == entry("1", 1)
    assert inbox.want() == ("1", 2)


def test_what_is_behind_is_not_named_because_history_brings_it_anyway() -> None:
    inbox = Inbox(queue_max=1)
    inbox.enter(welcome(item("1", 0), item("2", 0)))
    for seq in (1, 2):
        inbox.push(entry("1", seq))
    assert inbox.hello(ROOM)["cursors"] == {"2": 0}
    inbox.enter(welcome())
    inbox.take()
    assert inbox.want() == ("1", 1)


def test_a_resync_that_was_cut_short_goes_on_although_nothing_changed_since_the_mark() -> None:
    inbox = Inbox()
    inbox.enter(welcome(item("1", 5)))
    inbox.hello(ROOM)
    inbox.enter(welcome(item("1", 8)))
    inbox.push(entry("1", 6))  # and then the connection goes, before 7 and 8
    inbox.hello(ROOM)
    inbox.enter(welcome())
    assert inbox.want() == ("1", 6)


def test_retention_moves_the_start_and_nothing_else() -> None:
    inbox = Inbox()
    inbox.enter(welcome(item("1", 5)))
    inbox.hello(ROOM)
    inbox.enter(welcome(item("1", 9, floor=8)))
    assert inbox.push(entry("1", 8)) is Step.NEW
    inbox.hello(ROOM, cursors_max=0)
    inbox.enter(welcome(item("1", 14, floor=12)))
    assert inbox.fetched(8, page("1", range(12, 15), 14, floor=12)) == (True, [])
    assert taken(inbox) == [("1", 8), ("1", 12), ("1", 13), ("1", 14)]


def of_another_log(c: str, *seqs: int) -> list[Entry]:
    return [replace(entry(c, seq), ts=5_000 + seq, body=f"another {seq}") for seq in seqs]


def at_seven(epoch: str = "e1") -> Inbox:
    """The app has taken up to 7, and 8 waits for it."""
    inbox = Inbox()
    inbox.enter(welcome(item("1", 4), epoch=epoch))
    for seq in (5, 6, 7, 8):
        inbox.push(entry("1", seq))
    for _ in range(3):
        inbox.take()
    inbox.hello(ROOM)
    return inbox


def test_another_epoch_drops_queue_and_mark_and_what_has_not_changed_goes_on() -> None:
    inbox = at_seven()
    assert inbox.enter(welcome(item("9", 7), epoch="e2", since="2")) == [Reset(None, None)], (
        "known by another c, and by another peer"
    )
    inbox = at_seven()
    assert inbox.enter(welcome(replace(item("4", 7), peer="peer-1"), epoch="e2", since="2")) == [Reset(None, None)]
    assert (inbox.take(), inbox.want()) == (None, None)
    assert inbox.hello(ROOM) == {"epoch": "e2", "since": "2", "cursors": {"4": 7}}
    assert inbox.push(replace(entry("4", 8), peer="peer-1")) is Step.NEW


def test_in_another_epoch_what_was_not_taken_comes_from_the_new_log() -> None:
    inbox = at_seven()
    assert inbox.enter(welcome(replace(item("1", 9), ts=5_009), epoch="e2")) == [Reset(None, None)]
    assert inbox.push(*of_another_log("1", 10)) is Step.BEHIND
    assert inbox.want() == ("1", 3)
    new = [*(entry("1", seq) for seq in range(4, 8)), *of_another_log("1", 8, 9, 10)]
    assert inbox.fetched(3, Page("1", tuple(new), False, 10, 1)) == (True, [])
    assert [inbox.take() for _ in range(3)] == of_another_log("1", 8, 9, 10)


def test_in_another_epoch_a_log_that_lost_its_end_goes_on_where_the_two_part_and_says_so() -> None:
    inbox = at_seven()
    assert inbox.enter(welcome(replace(item("1", 8), ts=5_008), epoch="e2")) == [Reset(None, None)]
    again = Inbox()
    again.restore(inbox.save())
    for one in (inbox, again):
        one.enter(welcome(replace(item("1", 8), ts=5_008), epoch="e2"))
        assert one.want() == ("1", 3)
        first = Page("1", (entry("1", 4), entry("1", 5)), True, 8, 1)
        assert one.fetched(3, first) == (True, []), "where they part is not on this page"
        assert one.want() == ("1", 5)
        assert one.fetched(5, Page("1", tuple(of_another_log("1", 6, 7, 8)), False, 8, 1)) == (
            True,
            [Reset("1", "peer-1")],
        )
        assert one.push(*of_another_log("1", 9)) is Step.NEW


def test_in_another_epoch_an_edit_of_what_was_taken_has_the_text_that_the_page_tells_with_its_message() -> None:
    """A page of history tells a text once, by the message where that is in the page.

    The message does not come again, so its edit must tell it.
    """

    def edit(seq: int, ref: int, body: str | None = None) -> Entry:
        return replace(entry("1", seq, "edit"), ts=5_000 + seq, ref=ref, body=body)

    inbox = at_seven()
    inbox.enter(welcome(replace(item("1", 14), ts=5_014), epoch="e2"))
    known = (
        entry("1", 4), replace(entry("1", 5), body="mended", rev=10, edited=5_010), entry("1", 6),
        replace(entry("1", 7), body=None, rev=13, deleted=5_013),
    )  # fmt: skip
    eight = replace(entry("1", 8), ts=5_008, body="mended too", rev=12, edited=5_012)
    changes = (
        edit(9, 5),
        edit(10, 5),
        edit(11, 7),
        edit(12, 8),
        replace(edit(13, 7), kind="delete"),
        edit(14, 2, "known by this alone"),
    )
    inbox.fetched(3, Page("1", (*known, eight, *changes), False, 14, 1))
    got = []
    while (e := inbox.take()) is not None:
        got.append((e.seq, e.kind, e.ref, e.body))
    assert got == [
        (8, "message", None, "mended too"),
        (9, "edit", 5, None),
        (10, "edit", 5, "mended"),
        (11, "edit", 7, None),
        (12, "edit", 8, None),
        (13, "delete", 7, None),
        (14, "edit", 2, "known by this alone"),
    ]


def test_in_another_epoch_the_head_alone_may_show_what_was_lost() -> None:
    inbox = at_seven()
    assert inbox.enter(welcome(item("1", 5), epoch="e2")) == [Reset(None, None), Reset("1", "peer-1")]
    assert inbox.want() is None
    assert inbox.push(*of_another_log("1", 6)) is Step.NEW


def test_in_another_epoch_a_log_without_anything_known_goes_on_at_its_head() -> None:
    for head, first in ((3, None), (9, 3)):
        inbox = at_seven()
        resets = inbox.enter(welcome(replace(item("1", head), ts=5_000), epoch="e2"))
        assert (inbox.want() or (0, None))[1] == first
        if first is not None:
            resets += inbox.fetched(first, Page("1", tuple(of_another_log("1", *range(4, 10))), False, 9, 1))[1]
        assert resets == [Reset(None, None), Reset("1", "peer-1")]
        assert inbox.push(*of_another_log("1", head + 1)) is Step.NEW


def test_in_another_epoch_whoever_is_new_is_fetched_from_the_start() -> None:
    inbox = at_seven()
    inbox.enter(welcome(item("1", 7), item("2", 2), epoch="e2"))
    assert inbox.want() == ("2", 0)


def test_a_state_without_times_goes_on_at_the_heads_in_another_epoch() -> None:
    saved = at_seven().save()
    del saved["times"]
    inbox = Inbox()
    inbox.restore(saved)
    assert inbox.enter(welcome(item("1", 9), epoch="e2")) == [Reset(None, None), Reset("1", "peer-1")]
    assert inbox.want() is None


def test_a_cursor_beyond_the_head_resets_that_conversation_alone() -> None:
    inbox = Inbox()
    inbox.enter(welcome(item("1", 5), item("2", 5)))
    for e in (entry("1", 6), entry("2", 6)):
        inbox.push(e)
    inbox.hello(ROOM)
    assert inbox.enter(welcome(item("1", 3, reset=True), item("2", 6))) == [Reset("1", "peer-1")]
    assert inbox.push(entry("1", 4)) is Step.NEW
    assert taken(inbox) == [("2", 6), ("1", 4)]


def test_history_below_what_is_had_is_a_reset_too() -> None:
    inbox = Inbox(queue_max=1)
    inbox.enter(welcome(item("1", 5)))
    inbox.push(entry("1", 6))
    inbox.push(entry("1", 7))
    inbox.take()
    assert inbox.fetched(6, page("1", range(0), 3)) == (True, [Reset("1", "peer-1")])
    assert inbox.push(entry("1", 4)) is Step.NEW


def test_history_that_brings_nothing_is_told() -> None:
    inbox = Inbox()
    inbox.enter(welcome())
    inbox.hello(ROOM)
    inbox.enter(welcome(item("1", 3)))
    assert inbox.fetched(0, page("1", range(0), 3)) == (False, [])
    assert inbox.fetched(0, page("1", range(2, 4), 3)) == (False, []), "a hole"


def test_unknown_kinds_keep_their_place_and_are_not_shown() -> None:
    inbox = Inbox()
    inbox.enter(welcome(item("1", 0)))
    assert [inbox.push(entry("1", 1, "unknown")), inbox.push(entry("1", 2))] == [Step.NEW, Step.NEW]
    assert taken(inbox) == [("1", 2)]


def test_hello_names_the_recent_ones_and_keeps_to_its_bytes() -> None:
    import orjson

    inbox = Inbox()
    inbox.enter(welcome(*(item(f"{1_000_000 + n}", n) for n in range(2_000))))
    keys = inbox.hello(1 << 20)
    assert len(keys["cursors"]) == 500
    assert set(keys["cursors"].values()) == set(range(1_500, 2_000))
    for room in (0, 100, 1_000, 5_000):
        keys = inbox.hello(room)
        assert not keys or len(orjson.dumps(keys)) <= room
    assert inbox.hello(0) == {}


def test_a_saved_inbox_counts_what_was_taken_and_not_what_waited() -> None:
    inbox = Inbox()
    inbox.enter(welcome(item("1", 5)))
    for seq in (6, 7):
        inbox.push(entry("1", seq))
    inbox.take()
    again = Inbox()
    again.restore(inbox.save())
    assert again.hello(ROOM)["cursors"] == {}
    again.enter(welcome())
    assert again.want() == ("1", 6)


# ---- against a model of the server ---------------------------------------------------------------


@dataclass
class Log:
    times: list[int]  # of each entry
    floor: int = 1
    changed: int = 0

    @property
    def head(self) -> int:
        return len(self.times)


class Connection:
    """One session of the model: `frames` is what the client has not heard yet, in order."""

    def __init__(self) -> None:
        self.frames: deque[Entry | Page] = deque()
        self.asked: tuple[str, int] | None = None  # history under way
        self.reply: Page | None = None  # heard; the filler has not resumed yet


class InboxAgainstServer(RuleBasedStateMachine):
    @initialize(heads=st.lists(st.integers(0, 5), max_size=3))
    def start(self, heads: list[int]) -> None:
        self.epoch = 1
        self.clock = 1
        self.logs: dict[str, Log] = {}
        self.inbox = Inbox(QUEUE_MAX)
        self.expected: dict[str, int] = {}  # the next seq that the app must see
        self.started = False
        self.connection: Connection | None = None
        self.snapshot: tuple[dict[str, Any], dict[str, int], dict[str, int], set[str]] | None = None
        self.known_from: dict[str, int] = {}  # the first of the app's entries whose time the client has
        self.kept: dict[str, int] = {}  # the head that a restore left, until the client has found out
        self.vague: set[str] = set()  # in another log now, of which the client knows no entry: it goes on at the head
        for n, head in enumerate(heads):
            self.logs[str(n + 1)] = Log(list(range(1, head + 1)))

    # ---- the world -------------------------------------------------------------------------------

    @rule(n=st.integers(0, 3), count=st.integers(1, 5))
    def append(self, n: int, count: int) -> None:
        c = str(n + 1)
        log = self.logs.setdefault(c, Log([]))
        for _ in range(count):
            self.clock += 1
            log.times.append(self.clock + 100)
            log.changed = self.clock
            if self.connection is not None:
                self.connection.frames.append(self.entry(c, log.head))

    def entry(self, c: str, seq: int) -> Entry:
        return replace(entry(c, seq), ts=self.logs[c].times[seq - 1])

    @precondition(lambda self: self.logs)
    @rule(data=st.data())
    def retention(self, data: st.DataObject) -> None:
        log = self.logs[data.draw(st.sampled_from(sorted(self.logs)))]
        log.floor = data.draw(st.integers(log.floor, log.head + 1))

    @rule(cursors_max=st.integers(0, 3), finished=st.booleans())
    def connect(self, cursors_max: int, finished: bool) -> None:
        self.cut()
        keys = self.inbox.hello(ROOM, cursors_max)
        known = keys.get("epoch") == f"e{self.epoch}"
        cursors: dict[str, int] = keys.get("cursors", {}) if known else {}
        since = int(keys.get("since", 0)) if known else 0
        connection = Connection()
        items = []
        for c, log in self.logs.items():
            if log.changed < since and c not in cursors:
                continue
            start = cursors.get(c, log.head) + 1
            x = replace(item(c, log.head, log.floor), ts=log.times[-1] if log.times else 0)
            if start > log.head + 1:
                x = replace(x, reset=True)
            elif log.head + 1 - start > RESYNC_MAX:
                x = replace(x, page=True)
            else:
                connection.frames += [self.entry(c, seq) for seq in range(max(start, log.floor), log.head + 1)]
            items.append(x)
        if not finished:
            return
        self.connection = connection
        if self.inbox.epoch not in (None, f"e{self.epoch}"):
            old = {c for c, place in self.inbox.places.items() if place.taken and not place.is_new}
            self.vague |= {c for c in old if self.kept.get(c, 0) < self.known_from.get(c, 1 << 30) > 1}
            # Nor can it look up an entry that both logs had and that retention has taken since
            self.vague |= {c for c in old if self.kept.get(c, 0) < self.logs[c].floor > 1}
        resets = self.inbox.enter(welcome(*items, epoch=f"e{self.epoch}", since=str(self.clock)))
        if not self.started:
            self.started = True
            self.expected = {c: log.head + 1 for c, log in self.logs.items()}
            self.known_from = {c: log.head for c, log in self.logs.items()}
        for c, place in self.inbox.places.items():
            if place.is_new:
                self.known_from.pop(c, None)
            if place.proof is None:
                self.kept.pop(c, None)
        self.reset(resets)

    def reset(self, resets: list[Reset]) -> None:
        for reset in resets:
            if reset.c in self.vague:
                waiting = [e.seq for e in self.inbox.queue if isinstance(e, Entry) and e.c == reset.c]
                self.expected[reset.c] = min(waiting, default=self.inbox.places[reset.c].seq + 1)
                self.vague.discard(reset.c)
                self.known_from.pop(reset.c, None)

    @rule()
    def cut(self) -> None:
        self.connection = None

    @rule(data=st.data())
    def backup_is_restored(self, data: st.DataObject) -> None:
        self.cut()
        self.epoch += 1
        for c, log in self.logs.items():
            del log.times[data.draw(st.integers(log.floor - 1, log.head)) :]
            if c in self.expected:
                self.expected[c] = min(self.expected[c], log.head + 1)
            self.kept[c] = min(self.kept.get(c, log.head), log.head)
        self.snapshot = None

    @precondition(lambda self: self.connection is not None and self.connection.frames)
    @rule()
    def the_server_breaks_its_promise(self) -> None:
        assert self.connection is not None
        self.connection.frames.popleft()

    # ---- the client ------------------------------------------------------------------------------

    @precondition(lambda self: self.connection is not None and self.connection.frames)
    @rule()
    def hear(self) -> None:
        assert self.connection is not None
        frame = self.connection.frames.popleft()
        if isinstance(frame, Page):
            self.connection.reply = frame
        elif self.inbox.push(frame) is Step.JUMP:
            self.cut()

    @precondition(lambda self: self.connection is not None and self.connection.asked is None)
    @rule()
    def ask_for_history(self) -> None:
        assert self.connection is not None
        want = self.inbox.want()
        if want is None:
            return
        self.connection.asked = want
        c, after = want
        log = self.logs[c]
        seqs = range(max(after + 1, log.floor), log.head + 1)[:PAGE_ROWS]
        more = bool(seqs) and seqs[-1] < log.head
        self.connection.frames.append(Page(c, tuple(self.entry(c, seq) for seq in seqs), more, log.head, log.floor))

    @precondition(lambda self: self.connection is not None and self.connection.reply is not None)
    @rule()
    def the_filler_goes_on(self) -> None:
        connection = self.connection
        assert connection is not None
        assert connection.reply is not None
        assert connection.asked is not None
        reply = connection.reply
        if self.kept.get(reply.c, reply.floor) < reply.floor:  # as in `connect`, but taken while history was read
            self.vague.add(reply.c)
        progress, resets = self.inbox.fetched(connection.asked[1], reply)
        self.reset(resets)
        assert progress
        connection.asked = connection.reply = None

    @rule()
    def the_app_takes(self) -> None:
        e = self.inbox.take()
        if e is None:
            return
        self.known_from[e.c] = min(e.seq, self.known_from.get(e.c, e.seq))
        if self.logs[e.c].times[e.seq - 1 : e.seq] != [e.ts]:
            assert self.inbox.epoch != f"e{self.epoch}", f"{e} is of the log before"
            return
        expected = self.expected.get(e.c, 1)
        assert e.seq == expected or expected < e.seq <= self.logs[e.c].floor, (
            f"{e.c}: {e.seq} came where {expected} was due"
        )
        self.expected[e.c] = e.seq + 1

    @rule()
    def the_state_is_stored(self) -> None:
        self.snapshot = copy.deepcopy((self.inbox.save(), self.expected, self.kept, self.vague))

    @rule()
    def the_process_crashes(self) -> None:
        if self.snapshot is None:
            return
        self.cut()
        state, self.expected, self.kept, self.vague = copy.deepcopy(self.snapshot)
        self.inbox = Inbox(QUEUE_MAX)
        self.inbox.restore(state)
        self.started = state["epoch"] is not None
        self.known_from = {c: seq for c, times in state["times"].items() for seq, _ in times[:1]}

    # ---- what must hold --------------------------------------------------------------------------

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.inbox.queue) < QUEUE_MAX + PAGE_ROWS

    def teardown(self) -> None:
        """In good health, the app sees all there is."""
        self.connect(2, True)
        for _ in range(2_000):
            if self._step():
                break
        for c, log in self.logs.items():
            due = self.expected.get(c, 1)
            assert due == log.head + 1 or log.floor == log.head + 1, f"{c}: {due} never came, the head is {log.head}"

    def _step(self) -> bool:
        """True: nothing is left to do."""
        connection = self.connection
        if connection is None:
            self.connect(2, True)
        elif connection.frames:
            self.hear()
        elif connection.reply is not None:
            self.the_filler_goes_on()
        elif self.inbox.queue:
            self.the_app_takes()
        elif self.inbox.want() is not None:
            self.ask_for_history()
        else:
            return True
        return False


TestInboxAgainstServer = InboxAgainstServer.TestCase
TestInboxAgainstServer.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
