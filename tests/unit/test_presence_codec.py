"""Presence on its way between nodes: what goes in comes out, and nothing that comes in can hurt."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd import ids
from chatd.core.user_status import V_MAX, Device, Remote, Status
from chatd.ids import DeviceId, UserId
from chatd.wire import presence_codec
from chatd.wire.presence_codec import PresenceBatch

BOOT = "0123456789abcdef"
ALICE, BOB = UserId("alice"), UserId("bob")
PHONE = Device(DeviceId("phone"), 1_000, 2_000)

numbers = st.integers(0, V_MAX)
device_ids = st.text("ABCxyz019._:-", min_size=1, max_size=64).map(DeviceId)
devices = st.lists(st.builds(Device, device_ids, numbers, numbers), max_size=4).map(tuple)
remotes = st.builds(
    Remote, st.sampled_from([Status.ONLINE, Status.AWAY, Status.OFFLINE]), numbers, st.none() | numbers, devices
)
texts = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
ODD = ["\u3164", "\u2764\ufe0f", "a\u200bb", "\u0378"]  # older than the rule of today, or of another Unicode
users = (texts | st.sampled_from(ODD)).map(UserId)
batches = st.builds(
    PresenceBatch,
    st.text("0123456789abcdef", min_size=16, max_size=16),
    numbers,
    st.lists(st.tuples(users, remotes), max_size=5),
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.just("online")
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars, lambda v: st.lists(v, max_size=5) | st.dictionaries(st.text(max_size=3), v, max_size=3)
)


def valid(said: Remote) -> bool:
    at = [said.v, *([] if said.seen_ms is None else [said.seen_ms]), *(n for d in said.devices for n in d[1:])]
    return (
        said.status in (Status.ONLINE, Status.AWAY, Status.OFFLINE)
        and all(type(n) is int and 0 <= n <= V_MAX for n in at)
        and all(1 <= len(d.id) <= 64 and d.id.isascii() for d in said.devices)
    )


def batch(**keys: object) -> bytes:
    return orjson.dumps({"v": 1, "boot": BOOT, "n": 7, "users": [], **keys})


@given(remotes)
def test_an_entry_comes_out_as_it_went_in(said: Remote) -> None:
    assert presence_codec.decode_entry(presence_codec.encode_entry(said)) == said


@given(batches)
def test_a_batch_comes_out_as_it_went_in(batch: PresenceBatch) -> None:
    assert presence_codec.decode_batch(presence_codec.encode_batch(*batch)) == batch


def test_a_batch_is_on_the_wire_as_it_is_written_down() -> None:
    data = presence_codec.encode_batch(
        BOOT, 7, [(ALICE, Remote(Status.ONLINE, 3, None, (PHONE,))), (BOB, Remote(Status.OFFLINE, 4, 5, ()))]
    )
    assert data == (
        b'{"v":1,"boot":"0123456789abcdef","n":7,"users":[["alice","online",3,null,[["phone",1000,2000]]],["bob","offline",4,5,[]]]}'
    )  # fmt: skip


@given(st.binary(max_size=200))
def test_no_bytes_hurt(data: bytes) -> None:
    assert presence_codec.decode_batch(data) is None
    assert presence_codec.decode_entry(data) is None


@given(values)
def test_no_json_hurts(value: object) -> None:
    data = orjson.dumps(value)
    said = presence_codec.decode_entry(data)
    assert said is None or valid(said)
    assert presence_codec.decode_batch(data) is None


@given(batches, st.data())
def test_a_batch_with_one_part_exchanged_is_valid_or_refused(whole: PresenceBatch, data: st.DataObject) -> None:
    o = orjson.loads(presence_codec.encode_batch(*whole))
    place: Any = o
    key: Any = data.draw(st.sampled_from(["boot", "n", "users"]), label="key")
    while isinstance(place[key], list) and place[key] and data.draw(st.booleans(), label="deeper"):
        place = place[key]
        key = data.draw(st.integers(0, len(place) - 1), label="item")
    place[key] = data.draw(
        st.none() | st.booleans() | st.integers(-3, 3) | st.just(2**53) | st.floats(0, 9) | st.text(max_size=3),
        label="part",
    )
    found = presence_codec.decode_batch(orjson.dumps(o))
    if found is not None:
        assert len(found.incarnation) == 16
        assert type(found.n) is int
        assert all(valid(said) and ids.user_id(user) for user, said in found.users)


@given(batches.filter(lambda batch: batch.users), st.data())
def test_a_batch_that_is_cut_off_is_refused(whole: PresenceBatch, data: st.DataObject) -> None:
    encoded = presence_codec.encode_batch(*whole)
    assert presence_codec.decode_batch(encoded[: data.draw(st.integers(0, len(encoded) - 1))]) is None


ENTRY = ["online", 1, None, []]


@pytest.mark.parametrize(
    "keys",
    [
        {"v": 2},
        {"v": True},
        {"v": 1.0},
        {"v": None},
        {"boot": "0123456789ABCDEF"},
        {"boot": BOOT + "0"},
        {"boot": BOOT + "\n"},
        {"boot": 7},
        {"n": -1},
        {"n": "7"},
        {"n": 2**53},
        {"n": True},
        {"users": {}},
        {"users": None},
        {"users": ["alice"]},
        {"users": [[]]},
        {"users": [["alice"]]},
        {"users": [["", *ENTRY]]},
        {"users": [["a" * 65, *ENTRY]]},
        {"users": [["a\x00", *ENTRY]]},
        {"users": [[" a", *ENTRY]]},
        {"users": [[7, *ENTRY]]},
        {"users": [["alice", *ENTRY]] * 1_001},
        {"users": [["alice", *ENTRY], ["bob", "hidden", 1, None, []]]},
    ],
)
def test_a_batch_that_is_not_in_order_is_refused_whole(keys: dict[str, object]) -> None:
    assert presence_codec.decode_batch(batch(users=[["alice", *ENTRY]])) is not None
    assert presence_codec.decode_batch(batch(**keys)) is None


@pytest.mark.parametrize(
    "entry",
    [
        {},
        None,
        [],
        ["online", 1, None],
        ["here", 1, None, []],
        [["online"], 1, None, []],
        ["hidden", 1, None, []],
        ["online", -1, None, []],
        ["online", 2**53, None, []],
        ["online", 2**70, None, []],
        ["online", True, None, []],
        ["online", "1", None, []],
        ["online", 1, "0", []],
        ["online", 1, None, {}],
        ["online", 1, None, [["phone", 1]]],
        ["online", 1, None, ["phone"]],
        ["online", 1, None, [["ph one", 1, 1]]],
        ["online", 1, None, [["phone\n", 1, 1]]],
        ["online", 1, None, [["", 1, 1]]],
        ["online", 1, None, [["p" * 65, 1, 1]]],
        ["online", 1, None, [["phone", 1.5, 1]]],
        ["online", 1, None, [["phone", 1, -1]]],
        ["online", 1, None, [[f"d{n}", 1, 1] for n in range(101)]],
    ],
)
def test_an_entry_that_is_not_in_order_is_refused(entry: object) -> None:
    assert presence_codec.decode_entry(orjson.dumps(ENTRY)) is not None
    assert (
        presence_codec.decode_entry(
            orjson.dumps(entry)
            if entry != ["online", 2**70, None, []]
            else b'["online",1180591620717411303424,null,[]]'
        )
        is None
    )


def test_nesting_and_size_without_end_are_refused() -> None:
    assert presence_codec.decode_batch(b"[" * 100_000) is None
    assert presence_codec.decode_entry(b"[" * 10_000) is None
    assert presence_codec.decode_batch(batch(users=[["alice", *ENTRY]]) + b" " * presence_codec.BATCH_BYTES_MAX) is None
    assert presence_codec.decode_entry(orjson.dumps(ENTRY) + b" " * presence_codec.ENTRY_BYTES_MAX) is None


def test_the_largest_of_all_fits() -> None:
    devices = tuple(Device(DeviceId(f"{n:064d}"), V_MAX, V_MAX) for n in range(presence_codec.DEVICES_MAX))
    said = Remote(Status.OFFLINE, V_MAX, V_MAX, devices)
    whole = PresenceBatch(BOOT, V_MAX, [(UserId("\U0001f642" * 64), said)] * presence_codec.BATCH_USERS_MAX)
    assert presence_codec.decode_entry(presence_codec.encode_entry(said)) == said
    assert presence_codec.decode_batch(presence_codec.encode_batch(*whole)) == whole


def test_what_a_later_chatd_adds_is_passed_over() -> None:
    row = ["alice", "online", 1, None, [["phone", 1_000, 2_000, "new"]], "new"]
    assert presence_codec.decode_batch(batch(users=[row], new=1)) == PresenceBatch(
        BOOT, 7, [(ALICE, Remote(Status.ONLINE, 1, None, (PHONE,)))]
    )


def test_a_hundred_and_first_device_is_left_out_of_a_batch_and_spoils_it_for_nobody() -> None:
    """The one that is being closed for the newest counts until its connection has ended."""
    devices = tuple(Device(DeviceId(f"d{n}"), 1_000 + n, 1_000 + n) for n in range(101))
    said = Remote(Status.ONLINE, 7, None, devices)
    users = [(UserId("alice"), said), (UserId("bob"), said._replace(devices=devices[:1]))]
    batch = presence_codec.decode_batch(presence_codec.encode_batch("0123456789abcdef", 1, users))
    assert batch is not None
    (_, alice), (_, bob) = batch.users
    assert alice.devices == devices[1:], "those attached last"
    assert bob.devices == devices[:1]
    entry = presence_codec.decode_entry(presence_codec.encode_entry(said))
    assert entry is not None
    assert entry.devices == devices[1:]


@pytest.mark.parametrize("wrong", [None, "7", 7.5, -1, 2**63, [], {}, True])
@pytest.mark.parametrize("name", ["n", "grace_ms", "name", "left", "shards", "steady"])
def test_what_a_node_says_of_itself_in_a_wrong_type_is_as_good_as_unsaid(name: str, wrong: object) -> None:
    info = presence_codec.read_info(
        orjson.dumps({"name": "web1", "n": 7, "grace_ms": 5, "left": True, "shards": False, name: wrong})
    )
    assert [type(value) for value in (info.name, info.n, info.left, info.grace_ms)] == [str, int, bool, int]
    assert 0 <= info.n < 2**53
    assert 0 <= info.grace_ms <= presence_codec.GRACE_MS_MAX
    assert info.shards in (True, False, None)
    assert info.steady is None


@pytest.mark.parametrize("row", [[1_000, -7, 20], [1_000, -7, 20, "more"]])
def test_steady_time_is_read(row: list[object]) -> None:
    assert presence_codec.read_info(orjson.dumps({"steady": row})).steady == (1_000, -7, 20)


@pytest.mark.parametrize(
    "row", [[1_000, -7], [-1, 0, 0], [1, 0, -1], [1, 2**53, 1], [1, 2.5, 1], [True, 0, 0], ["1", 0, 0]]
)
def test_steady_time_that_is_none_is_not(row: list[object]) -> None:
    assert presence_codec.read_info(orjson.dumps({"steady": row})).steady is None


@pytest.mark.parametrize("data", [b"", b"[]", b"7", b"{", b"\xff", b"[" * 5_000, b"null"])
def test_garbage_beside_a_lease_says_nothing(data: bytes) -> None:
    assert presence_codec.read_info(data) == presence_codec.Info("", 0, False, 0, None)
