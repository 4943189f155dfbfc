"""When the client connects again: section 10 of docs/protocol.md, line by line."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.client.dial import AT_ONCE_S, BACKOFF_FIRST_S, BACKOFF_MAX_S, CLOSES, RATE_LIMITED_S, Dial, Next

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"


class Always(random.Random):
    """The longest jitter there can be."""

    def random(self) -> float:
        return 1.0


def dial(*, renewable: bool = True) -> Dial:
    return Dial(Always(), renewable=renewable)


def test_every_close_code_of_the_page_has_its_rule_and_no_other() -> None:
    section = PROTOCOL.read_text().split("## 10. Close codes")[1]
    rows = [re.findall(r"\d{4}", line.split("|")[1]) for line in section.splitlines() if re.match(r"\| \d{4}", line)]
    assert {int(code) for row in rows for code in row} == set(CLOSES)


@pytest.mark.parametrize(
    ("code", "wait_s"),
    [
        (1000, BACKOFF_FIRST_S),
        (1001, BACKOFF_FIRST_S),
        (1002, None),
        (1003, None),
        (1006, AT_ONCE_S),
        (1007, None),
        (1009, None),
        (1011, BACKOFF_FIRST_S),
        (1012, AT_ONCE_S),
        (4000, None),
        (4001, AT_ONCE_S),
        (4002, AT_ONCE_S),
        (4003, BACKOFF_FIRST_S),
        (4004, None),
        (4005, None),
        (4006, AT_ONCE_S),
        (4007, AT_ONCE_S),
        (4008, RATE_LIMITED_S),
        (4009, BACKOFF_FIRST_S),
        (4999, AT_ONCE_S),
    ],
)
def test_the_first_wait_after_each_close(code: int, wait_s: float | None) -> None:
    assert dial().closed(code).wait_s == wait_s


def test_a_time_that_the_server_named_is_kept_to() -> None:
    assert dial().closed(1012, named_s=2.3) == Next(2.3, "restart")
    assert dial().closed(1006, named_s=0.7).wait_s == 0.7
    assert dial().closed(1012, named_s=0.0).wait_s == AT_ONCE_S
    assert dial().closed(4004, named_s=0.7).wait_s is None, "but it does not undo a stop"


WAITS = [AT_ONCE_S, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_waits_double_up_to_a_bound_and_start_again_once_a_connection_has_lived() -> None:
    one = dial()
    assert [one.closed(1006).wait_s for _ in WAITS] == WAITS
    one.live()
    assert one.closed(1006).wait_s == 30.0, "a welcome alone says nothing"
    one.live()
    one.settled()
    assert one.closed(1006).wait_s == AT_ONCE_S


@pytest.mark.parametrize("code", [1006, 1012, 4001, 4002, 4006, 4007])
def test_a_server_that_closes_right_after_each_welcome_is_not_stormed(code: int) -> None:
    one = dial()
    waits = []
    for _ in WAITS:
        one.live()
        waits.append(one.closed(code).wait_s)
    assert waits == WAITS


def test_a_server_that_goes_away_right_after_each_welcome_is_not_stormed() -> None:
    one = dial()
    waits = []
    for _ in range(4):
        one.live()
        waits.append(one.closed(1012, named_s=0.2).wait_s)
    assert waits == [0.2, 0.7, 1.2, 2.2]


@given(st.integers(), st.lists(st.sampled_from([1006, 1012, 4003, 4007, 4009]), min_size=1, max_size=30))
def test_jitter_is_full_and_bounded(seed: int, codes: list[int]) -> None:
    one = Dial(random.Random(seed), renewable=True)
    for code in codes:
        wait_s = one.closed(code).wait_s
        assert wait_s is not None
        assert 0.0 <= wait_s <= BACKOFF_MAX_S


def test_two_clients_do_not_come_back_in_step() -> None:
    waits = {Dial(random.Random(seed), renewable=True).closed(4009).wait_s for seed in range(50)}
    assert len(waits) == 50


def test_a_refused_token_is_renewed_once() -> None:
    one = dial()
    assert [one.renew, one.refused("unauthorized", None), one.renew] == [
        False,
        Next(AT_ONCE_S, "unauthorized", 4001),
        True,
    ]
    assert one.closed(4001) == Next(None, "unauthorized", 4001)


def test_a_token_that_runs_out_again_after_a_welcome_is_renewed_again() -> None:
    one = dial()
    for _ in range(3):
        assert one.closed(4002) == Next(AT_ONCE_S, "token_expired", 4002)
        one.live()
        one.settled()
        assert not one.renew


def test_a_fixed_token_that_is_refused_is_the_end() -> None:
    assert dial(renewable=False).refused("token_expired", None) == Next(None, "token_expired", 4002)


def test_a_hello_that_may_be_said_again_waits_as_told_and_longer_each_time() -> None:
    one = dial()
    assert [one.refused("overloaded", 1_000).wait_s for _ in range(3)] == [1.0, 1.5, 2.0]
    assert one.refused("bad_version", None) == Next(None, "bad_version")


def test_a_wrong_address_is_told_at_once_and_a_bad_moment_of_the_load_balancer_is_not() -> None:
    one = dial()
    assert one.unreachable(404) == Next(None, "http_404")
    assert one.unreachable(503).wait_s == 0.5
    assert one.unreachable(429).wait_s == 1.0
    assert one.unreachable().wait_s == 2.0
    one.live()
    one.settled()
    assert one.unreachable(404).wait_s == 0.5
