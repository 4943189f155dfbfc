"""Hellos of a user and of an address: a burst, then so many a second; an address that is quiet is
forgotten.
"""

from __future__ import annotations

import pytest

from chatd.core import hello_rates
from chatd.core.conversations import LINGER_S
from chatd.core.hello_rates import Addresses, take


def test_a_burst_and_then_the_rate() -> None:
    full_at = 0.0
    for _ in range(3):
        wait_s, full_at = take(full_at, 10.0, 2.0, 3)
        assert wait_s == 0.0
    wait_s, full_at = take(full_at, 10.0, 2.0, 3)
    assert 0 < wait_s <= 0.5
    assert take(full_at, 10.0 + wait_s - 0.01, 2.0, 3).wait_s > 0.0, "a try that fails takes nothing and costs nothing"
    assert take(full_at, 10.0 + wait_s, 2.0, 3).wait_s == 0.0


def test_addresses_are_forgotten_once_they_are_as_good_as_new() -> None:
    addresses = Addresses(3)
    for n in range(100):
        addresses.take(f"10.0.0.{n}", 1.0)
    addresses.take("late", 100.0)
    assert len(addresses) == 1


def test_how_many_addresses_are_counted_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hello_rates, "ADDRESSES_MAX", 10)
    addresses = Addresses(3)
    for n in range(50):
        addresses.take(f"10.0.0.{n}", 1.0)
    assert len(addresses) == 10


def test_who_is_let_go_is_as_good_as_new() -> None:
    assert hello_rates.USER_HELLOS_BURST / hello_rates.USER_HELLOS_PER_S <= LINGER_S
