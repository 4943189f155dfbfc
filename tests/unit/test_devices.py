"""Which devices a user has on a node, and which of them must be closed.

What all nodes decide together is checked over all arrangements of up to three nodes.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatd.core.devices import Attaching, attached, displaced, surplus
from chatd.core.user_status import V_MAX, Device, Seat, Status
from chatd.ids import DeviceId, UserId

USER = UserId("alice")
PHONE, LAPTOP = DeviceId("phone"), DeviceId("laptop")
DEVICES = [DeviceId(name) for name in ("phone", "laptop", "tablet", "watch", "car")]

ms = st.integers(0, 5)
rooms = st.dictionaries(  # incarnation -> its devices
    st.sampled_from(["aa", "bb", "cc"]),
    st.dictionaries(st.sampled_from(DEVICES), st.tuples(ms, ms), max_size=5).map(
        lambda all: tuple(Device(id, *at) for id, at in all.items())
    ),
    min_size=1,
)


def seats_but(incarnation: str, all: dict[str, tuple[Device, ...]]) -> list[Seat]:
    return [Seat(other, Status.ONLINE, devices) for other, devices in all.items() if other != incarnation]


@given(rooms)
def test_every_device_stays_at_exactly_one_node_the_one_where_it_came_last(all: dict[str, tuple[Device, ...]]) -> None:
    gone = {
        incarnation: displaced(incarnation, devices, seats_but(incarnation, all))
        for incarnation, devices in all.items()
    }
    stays = {
        (d.id, d.attached_ms, incarnation)
        for incarnation, devices in all.items()
        for d in devices
        if d.id not in gone[incarnation]
    }
    assert stays == {
        max((d.id, d.attached_ms, incarnation) for incarnation, ds in all.items() for d in ds if d.id == id)
        for id in {d[0] for d in stays}
    }
    assert {id for id, _, _ in stays} == {d.id for devices in all.values() for d in devices}


@given(rooms, st.integers(1, 5))
def test_the_longest_idle_go_and_each_is_closed_by_one_node(
    all: dict[str, tuple[Device, ...]], devices_max: int
) -> None:
    gone = {
        incarnation: displaced(incarnation, devices, seats_but(incarnation, all))
        for incarnation, devices in all.items()
    }
    over = {
        (id, incarnation)
        for incarnation, devices in all.items()
        for id in surplus(incarnation, devices, seats_but(incarnation, all), devices_max)
    }
    stays = [
        (d.active_ms, d.attached_ms, incarnation, d.id)
        for incarnation, devices in all.items()
        for d in devices
        if d.id not in gone[incarnation]
    ]
    too_many = max(len(stays) - devices_max, 0)
    assert over == {(id, incarnation) for _, _, incarnation, id in sorted(stays)[:too_many]}


def test_a_device_that_is_attached_already_changes_nothing() -> None:
    had = (Device(PHONE, 5, 9),)
    assert attached(had, PHONE, 20, None) is had
    assert attached(had, PHONE, 20, 5) is had
    assert attached(had, PHONE, 20, 7) == (Device(PHONE, 7, 9),)
    assert attached(had, LAPTOP, 20, None) == (*had, Device(LAPTOP, 20, 20))


def test_a_session_whose_hello_is_under_way_is_newer_than_all_known_ones() -> None:
    attaching = Attaching()
    assert attaching.begin(USER, PHONE, 10, [Device(PHONE, 30, 30), Device(LAPTOP, 99, 99)]) == 31
    assert attaching.begin(USER, LAPTOP, 10, [Device(LAPTOP, V_MAX, 1)]) == V_MAX
    live = (Device(PHONE, 30, 50),)
    assert attaching.with_newest(USER, live) == (Device(PHONE, 31, 31), Device(LAPTOP, V_MAX, V_MAX))
    assert attaching.as_active(USER, live) == (Device(PHONE, 31, 50),), "a new device counts once its hello is over"
    attaching.shift(-31)
    assert attaching.end(USER, PHONE) == 0
    assert attaching.end(USER, LAPTOP) == V_MAX - 31
    assert attaching.end(USER, LAPTOP) is None
    assert len(attaching) == 0
    assert attaching.with_newest(USER, live) is live
