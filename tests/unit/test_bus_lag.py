"""How long a gap waits for the bus follows how late the bus is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatd.core.bus_lag import MARGIN, WAIT_MAX_S, WAIT_MIN_S, BusLag


@given(st.lists(st.floats(-1e6, 1e6)))
def test_it_stays_within_its_bounds_whatever_clocks_say(lags: list[float]) -> None:
    bus = BusLag()
    for lag in lags:
        bus.heard(lag)
        assert WAIT_MIN_S <= bus.wait_s <= WAIT_MAX_S


def test_it_rises_with_one_late_entry_and_falls_with_many_quick_ones() -> None:
    bus = BusLag()
    assert bus.wait_s == WAIT_MIN_S
    bus.heard(0.1)
    assert bus.wait_s == 0.1 * MARGIN
    bus.heard(0.01)
    assert 0.14 < bus.wait_s < 0.15
    for _ in range(400):
        bus.heard(0.001)
    assert bus.wait_s == WAIT_MIN_S
