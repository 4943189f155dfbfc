"""The bench's judge must find what went wrong: each test hands it a run with one seeded fault, and
a clean run must have none.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import TypeAlias

import pytest

from bench.ledger import Account, Ledger

Event: TypeAlias = tuple[str, int, int, int]  # ack or entry, user, k, seq

USERS, N = 6, 120


def clean_run(seed: int = 0) -> tuple[list[int], list[Event]]:
    """Senders of N messages, and what a right server makes the users see, in the order of seq."""
    rng = random.Random(seed)
    sender = [rng.randrange(USERS) for _ in range(N)]
    seqs = [0] * USERS
    events: list[Event] = []
    for k, u in enumerate(sender):
        pair = u & ~1
        seqs[pair] += 1
        events += [("ack", u, k, seqs[pair]), ("entry", u ^ 1, k, seqs[pair])]
    return sender, events


def judge(sender: list[int], events: list[Event], dup: bool = False) -> Account:
    ledger = Ledger(USERS)
    ledger.extend(sender)
    for k in range(N):
        ledger.due_at[k] = ledger.sent_at[k] = float(k)
    for kind, user, k, seq in events:
        if kind == "ack":
            ledger.acked(user, k, seq, k + 0.5, dup)
        else:
            ledger.delivered(user, k, seq, k + 0.75)
    return ledger.account(0, N)


def place(events: list[Event], kind: str, k: int) -> int:
    return next(i for i, e in enumerate(events) if e[0] == kind and e[2] == k)


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_run_is_clean(seed: int) -> None:
    account = judge(*clean_run(seed))
    assert account == Account(N, N, N, 0, 0, 0, 0)
    assert account.clean


@pytest.mark.parametrize("kind", ["ack", "entry"])
@pytest.mark.parametrize("k", [0, 57, N - 1])
def test_a_missing_ack_or_entry_is_a_loss(kind: str, k: int) -> None:
    sender, events = clean_run()
    del events[place(events, kind, k)]
    assert judge(sender, events).lost == 1


@pytest.mark.parametrize("kind", ["ack", "entry"])
def test_a_repeated_ack_or_entry_is_a_duplicate_and_no_disorder(kind: str) -> None:
    sender, events = clean_run()
    events.append(events[place(events, kind, 40)])
    account = judge(sender, events)
    assert (account.duplicated, account.reordered, account.lost) == (1, 0, 0)


def test_an_ack_that_says_dup_is_a_duplicate() -> None:
    sender, events = clean_run()
    assert judge(sender, events, dup=True).duplicated == N


def test_one_entry_in_the_place_of_another_is_a_loss_and_a_duplicate() -> None:
    sender, events = clean_run()
    same = [k for k in range(N) if sender[k] == sender[3]]
    at, other = place(events, "entry", same[5]), events[place(events, "entry", same[4])]
    events[at] = other
    account = judge(sender, events)
    assert (account.lost, account.duplicated) == (1, 1)


def swap_arrivals(sender: list[int], events: list[Event]) -> None:
    """Two neighbours of one receiver come in the wrong order, each with its own seq."""
    mine = [i for i, e in enumerate(events) if e[0] == "entry" and e[1] == 1]
    events[mine[7]], events[mine[8]] = events[mine[8]], events[mine[7]]


def swap_contents(sender: list[int], events: list[Event]) -> None:
    """The log itself has one sender's two messages in the wrong order: the seqs rise."""
    mine = [i for i, e in enumerate(events) if e[0] == "entry" and e[1] == 1]
    (a, u, k, s), (b, v, m, t) = events[mine[7]], events[mine[8]]
    events[mine[7]], events[mine[8]] = (a, u, m, s), (b, v, k, t)


def swap_ack_and_entry(sender: list[int], events: list[Event]) -> None:
    """A sender's ok comes after an entry of the peer that has a higher seq."""
    mine = [i for i, e in enumerate(events) if e[1] == 0]
    i = next(i for i, j in itertools.pairwise(mine) if events[i][0] == "ack" and events[j][0] == "entry")
    j = mine[mine.index(i) + 1]
    events[i], events[j] = events[j], events[i]


@pytest.mark.parametrize("fault", [swap_arrivals, swap_contents, swap_ack_and_entry])
def test_a_swap_is_disorder(fault: Callable[[list[int], list[Event]], None]) -> None:
    sender, events = clean_run()
    fault(sender, events)
    account = judge(sender, events)
    assert (account.reordered, account.lost, account.duplicated) == (1, 0, 0)


@pytest.mark.parametrize("event", [("ack", 0, N, 1), ("entry", 0, N + 5, 1), ("ack", 0, -1, 1)])
def test_what_nobody_sent_is_a_stray(event: Event) -> None:
    sender, events = clean_run()
    assert judge(sender, [*events, event]).stray == 1


def test_an_entry_at_the_wrong_user_is_a_stray_and_a_loss() -> None:
    sender, events = clean_run()
    at = place(events, "entry", 10)
    kind, user, k, seq = events[at]
    events[at] = (kind, (user + 2) % USERS, k, seq)
    account = judge(sender, events)
    assert (account.stray, account.lost) == (1, 1)


def test_what_never_came_is_infinitely_late() -> None:
    ledger = Ledger(USERS)
    ledger.extend([0, 1])
    for k in (0, 1):
        ledger.due_at[k] = ledger.sent_at[k] = 10.0
    ledger.delivered(1, 0, 1, 10.25)
    assert ledger.latencies(0, 2, ledger.deliveries_at) == [0.25, float("inf")]


def test_latency_counts_from_the_time_due_and_lag_is_the_generators_own() -> None:
    ledger = Ledger(USERS)
    ledger.extend([0])
    ledger.due_at[0], ledger.sent_at[0] = 1.0, 1.5
    ledger.acked(0, 0, 1, 2.0)
    assert ledger.latencies(0, 1, ledger.acked_at) == [1.0]
    assert ledger.lags(0, 1) == [0.5]


def test_what_was_not_sent_is_not_counted_as_sent() -> None:
    ledger = Ledger(USERS)
    ledger.extend([0, 0])
    ledger.due_at[0] = ledger.sent_at[0] = 1.0
    assert ledger.account(0, 2).sent == 1


def test_what_was_never_sent_is_infinitely_late() -> None:
    ledger = Ledger(USERS)
    ledger.extend([0])
    ledger.due_at[0] = 1.0
    assert ledger.lags(0, 1) == [float("inf")]


# ---- several devices -----------------------------------------------------------------------------


def with_devices(*seen: tuple[int, int, int]) -> Account:
    """Message 0 of user 0, who has 3 devices, as its peer; acked to its first device.

    `seen`: user, device, seq.
    """
    ledger = Ledger(USERS, devices=3)
    ledger.extend([0])
    ledger.due_at[0] = ledger.sent_at[0] = 0.0
    ledger.acked(0, 0, 1, 0.5)
    for n, (user, device, seq) in enumerate(seen):
        ledger.delivered(user, 0, seq, 1.0 + n, device)
    account = ledger.account(0, 1)
    assert account.lost or ledger.deliveries_at[0] == 1.0 + len(seen) - 1, (
        "a delivery is over when the last device has it"
    )
    return account


ALL = [(1, 0, 1), (1, 1, 1), (1, 2, 1), (0, 1, 1), (0, 2, 1)]


def test_a_message_is_delivered_when_all_devices_of_both_have_it() -> None:
    assert with_devices(*ALL).clean


@pytest.mark.parametrize("missing", range(len(ALL)))
def test_a_device_that_has_not_got_it_is_a_loss(missing: int) -> None:
    account = with_devices(*(one for n, one in enumerate(ALL) if n != missing))
    assert (account.lost, account.stray) == (1, 0)


def test_the_device_that_sent_must_not_get_the_entry_too() -> None:
    assert with_devices(*ALL[:-1], (0, 0, 1), ALL[-1]).stray == 1


def test_a_device_that_gets_it_twice_is_a_duplicate() -> None:
    account = with_devices(*ALL[:-1], ALL[0], ALL[-1])
    assert (account.duplicated, account.lost) == (1, 0)


def test_an_ack_at_another_device_is_a_stray() -> None:
    ledger = Ledger(USERS, devices=3)
    ledger.extend([0])
    ledger.acked(0, 0, 1, 0.5, device=1)
    assert (ledger.stray, ledger.acks) == (1, 0)


# ---- several conversations of a user -------------------------------------------------------------


def test_each_conversation_has_an_order_of_its_own() -> None:
    """User 9 writes to users 0 and 1: its seqs rise in each conversation, and not over both."""
    ledger = Ledger(4, owner=[0, 9, 1, 9])
    ledger.extend([1, 3, 1])
    for k, seq in ((0, 1), (1, 1), (2, 2)):
        ledger.sent_at[k] = 0.0
        ledger.acked(9, k, seq, 1.0)
        ledger.delivered(k % 2, k, seq, 1.0)
    assert ledger.account(0, 3).clean
    assert (ledger.last_seq(0), ledger.last_seq(2), ledger.last_seq(1)) == (2, 1, 2)
    ledger.delivered(1, 0, 3, 2.0)
    assert ledger.stray == 1


def test_messages_can_be_added_and_the_count_goes_on() -> None:
    ledger = Ledger(USERS)
    ledger.extend([0, 2])
    ledger.extend([1])
    assert (ledger.n, [ledger.sender_of(k) for k in range(3)]) == (3, [0, 2, 1])


# ---- sent again after a cut ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("came", "duplicated"),
    [
        (["ok"], 0),
        (["dup"], 0),
        (["entry"], 0),
        (["entry", "dup"], 0),
        (["dup", "entry"], 0),
        (["ok", "ok"], 1),
        (["dup", "dup"], 1),
        (["ok", "dup"], 1),
        (["dup", "ok"], 1),
        (["ok", "entry"], 1),
        (["entry", "ok"], 1),
        (["entry", "entry"], 1),
        (["entry", "dup", "dup"], 1),
    ],
)
def test_what_was_cut_is_acked_by_its_dup_or_its_own_entry_each_once(came: list[str], duplicated: int) -> None:
    ledger = Ledger(USERS)
    ledger.extend([0])
    ledger.due_at[0] = ledger.sent_at[0] = 0.0
    ledger.cut(0)
    for what in came:
        if what == "entry":
            assert not ledger.delivered(0, 0, 1, 1.0)
        else:
            ledger.acked(0, 0, 1, 1.0, dup=what == "dup")
    ledger.delivered(1, 0, 1, 1.0)
    account = ledger.account(0, 1)
    assert (account.acked, account.lost, account.duplicated, account.stray) == (1, 0, duplicated, 0)


def test_without_a_cut_its_own_entry_is_stray_and_a_dup_is_one() -> None:
    ledger = Ledger(USERS)
    ledger.extend([0, 0])
    ledger.delivered(0, 0, 1, 1.0)
    assert ledger.acked(0, 1, 2, 1.0, dup=True)
    assert (ledger.stray, ledger.duplicated) == (1, 1)


def test_the_own_entry_of_what_was_cut_stands_in_the_order() -> None:
    ledger = Ledger(USERS)
    ledger.extend([0, 1])
    ledger.cut(0)
    ledger.delivered(0, 1, 2, 1.0)
    ledger.delivered(0, 0, 1, 1.0)
    assert ledger.reordered == 1
