"""The checker finds nothing in a right run, and each seeded fault by its name: a checker that
cannot fail proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults import checker
from tests.faults.checker import Acked, Connected, Entry, Got, History, Sent

Run: TypeAlias = tuple[list[History], dict[str, list[Entry]]]


def right_run(senders: list[int], cut_at: int = 0) -> Run:
    """A faultless run of two users with two devices each; `senders` names the device of each message.

    Bob's phone reconnects at `cut_at`.
    """
    devices = [History("alice", "desk"), History("alice", "phone"), History("bob", "desk"), History("bob", "phone")]
    for device in devices:
        device.events.append(Connected({}))
    log: list[Entry] = []
    for seq, n in enumerate(senders, 1):
        me = devices[n]
        entry = Entry(seq, 1_000 + seq // 2, me.user, f"cid{seq}", "message", None, f"text {seq}")
        log.append(entry)
        peer = "bob" if me.user == "alice" else "alice"
        me.events.append(Sent(entry.cid, peer, "message", None, entry.body))
        for device in devices:
            if device is me:
                device.events.append(Acked("1", seq, entry.ts, entry.cid, False))
            else:
                device.events.append(
                    Got(
                        "1",
                        seq,
                        entry.ts,
                        me.user,
                        "message",
                        None,
                        entry.body,
                        entry.cid if device.user == me.user else None,
                    )
                )
        if seq == cut_at:
            devices[3].events.append(Connected({"1": seq}))
    return devices, {"1": log}


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 30))
def test_a_right_run_has_no_findings(senders: list[int], cut_at: int) -> None:
    histories, log = right_run(senders, cut_at)
    assert checker.check(histories, log) == []
    assert [f for h in histories for f in checker.missing(h, log)] == []


def of(history: History, kind: type) -> list[int]:
    return [n for n, e in enumerate(history.events) if type(e) is kind]


def lose_an_acked_entry(histories: list[History], log: list[Entry]) -> None:
    del log[-1]
    for history in histories:
        history.events = [e for e in history.events if not (isinstance(e, Got) and e.seq > len(log))]


def write_an_entry_twice(histories: list[History], log: list[Entry]) -> None:
    log.append(log[0]._replace(seq=len(log) + 1, ts=log[-1].ts))


def push_an_entry_twice(histories: list[History], log: list[Entry]) -> None:
    events = histories[3].events
    last = of(histories[3], Got)[-1]
    events.append(Connected({"1": events[last].seq - 1}))  # type: ignore[union-attr]
    events.append(events[last])


def swap_two_pushes(histories: list[History], log: list[Entry]) -> None:
    events = histories[3].events
    one, other = of(histories[3], Got)[:2]
    events[one], events[other] = events[other], events[one]


def pass_over_a_push(histories: list[History], log: list[Entry]) -> None:
    del histories[3].events[of(histories[3], Got)[1]]


def swap_two_of_one_sender(histories: list[History], log: list[Entry]) -> None:
    events = histories[0].events
    one, other = of(histories[0], Sent)[:2]
    events[one], events[other] = events[other], events[one]


def make_a_hole(histories: list[History], log: list[Entry]) -> None:
    for n in range(2, len(log)):
        log[n] = log[n]._replace(seq=log[n].seq + 1)


def let_time_fall(histories: list[History], log: list[Entry]) -> None:
    log[2] = log[2]._replace(ts=1)


def answer_a_dup_with_another_seq(histories: list[History], log: list[Entry]) -> None:
    first = next(e for e in histories[0].events if isinstance(e, Acked))
    histories[0].events.append(first._replace(seq=first.seq + 1, dup=True))


def change_a_body(histories: list[History], log: list[Entry]) -> None:
    n = of(histories[3], Got)[0]
    histories[3].events[n] = histories[3].events[n]._replace(body="another")  # type: ignore[call-arg]


def push_under_another_name(histories: list[History], log: list[Entry]) -> None:
    n = of(histories[3], Got)[0]
    histories[3].events[n] = histories[3].events[n]._replace(sender="mallory")  # type: ignore[call-arg]


def forget_the_last_push(histories: list[History], log: list[Entry]) -> None:
    del histories[3].events[of(histories[3], Got)[-1]]


FAULTS: list[tuple[Callable[[list[History], list[Entry]], None], str]] = [
    (lose_an_acked_entry, "lost"),
    (write_an_entry_twice, "twice"),
    (push_an_entry_twice, "twice"),
    (swap_two_pushes, "order"),
    (pass_over_a_push, "order"),
    (swap_two_of_one_sender, "order"),
    (make_a_hole, "hole"),
    (let_time_fall, "time"),
    (answer_a_dup_with_another_seq, "dup"),
    (change_a_body, "body"),
    (push_under_another_name, "body"),
    (forget_the_last_push, "missing"),
]


@pytest.mark.parametrize(("fault", "what"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
@given(middle=st.lists(st.integers(0, 3), max_size=10))
def test_a_seeded_fault_is_found(
    fault: Callable[[list[History], list[Entry]], None], what: str, middle: list[int]
) -> None:
    # Alice's desk sends first, third and last; bob's phone reads all of it or sent some
    histories, log = right_run([0, 1, 0, *middle, 0])
    fault(histories, log["1"])
    found = checker.check(histories, log) + [f for h in histories for f in checker.missing(h, log)]
    assert what in checker.counts(found)


def edited_run() -> Run:
    histories, log = right_run([0])
    histories[0].events += [Sent("cid2", "bob", "edit", 1, "new"), Acked("1", 2, 1_001, "cid2", False)]
    for history in histories[1:]:
        history.events.append(
            Got("1", 2, 1_001, "alice", "edit", 1, "new", "cid2" if history.user == "alice" else None)
        )
    log["1"] = [log["1"][0]._replace(body="new"), Entry(2, 1_001, "alice", "cid2", "edit", 1, None)]
    return histories, log


def test_a_message_may_read_as_sent_or_as_edited_and_as_nothing_else() -> None:
    histories, log = edited_run()
    assert checker.check(histories, log) == []
    late = History("bob", "late", [Connected({}), Got("1", 1, 1_000, "alice", "message", None, "new", None)])
    assert checker.check([*histories, late], log) == []
    wrong = replace(late, events=[Connected({}), Got("1", 1, 1_000, "alice", "message", None, None, None)])
    assert checker.counts(checker.check([*histories, wrong], log)) == {"body": 1}


def test_a_page_may_leave_an_edits_text_to_what_tells_it_and_to_nothing_else() -> None:
    """As a page has them where a later edit, or the message, has the text; the later one may be
    pushed, or be one's own.
    """
    histories, log = edited_run()
    log["1"].append(Entry(3, 1_002, "alice", "cid3", "edit", 1, None))
    log["1"][0] = log["1"][0]._replace(body="newer")
    own = Acked("1", 3, 1_002, "cid3", False)
    page = Got("1", 2, 1_001, "alice", "edit", 1, None, None, True)

    def found(user: str, *tells: checker.Event) -> list[checker.Finding]:
        reader = History(user, "late", [Connected({"1": 1}), page, *tells])
        sender = replace(histories[0], events=[*histories[0].events, Sent("cid3", "bob", "edit", 1, "newer")])
        return [f for f in checker.check([sender, reader], log) if f.what == "body"]

    assert len(found("bob")) == 1
    assert found("bob", Got("1", 3, 1_002, "alice", "edit", 1, "newer", None)) == []
    assert found("bob", Got("1", 1, 1_000, "alice", "message", None, "newer", None, True)) == []
    assert len(found("bob", Got("1", 1, 1_000, "alice", "message", None, "new", None))) == 1, (
        "a push has the text as of then"
    )
    assert found("alice", own) == []


def test_what_stands_in_a_foreign_log_is_found() -> None:
    """A message of a to b in the log of c and d, and one that c was given from a log of others."""
    a, c = History("a", "a-0", [Sent("x", "b", "message", None, "hi")]), History("c", "c-0")
    log = {"1": [Entry(1, 5, "a", "x", "message", None, "hi")]}
    assert checker.foreign([a, c], [a, c], log, {"1": {"a", "b"}}) == []
    assert len(checker.foreign([a, c], [a, c], log, {"1": {"c", "d"}})) == 1
    given = History("c", "c-0", [Got("1", 1, 5, "a", "message", None, "hi", "x")])
    assert len(checker.foreign([a, c], [a, given], log, {"1": {"a", "b"}})) == 1
