"""The bench's schedule, percentiles, bytes and verdict."""

from __future__ import annotations

import asyncio
import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from bench import latency, report, wire
from bench.pace import LEAD_S, Pacer, Schedule, rounds


def read_with_websockets(data: bytes, mask: bool) -> Frame:
    reader = StreamReader()
    reader.feed_data(data)
    parsing = Frame.parse(reader.read_exact, mask=mask)
    with pytest.raises(StopIteration) as end:
        next(parsing)
    frame: Frame = end.value.value
    return frame


# ---- schedule -------------------------------------------------------------------------------------------------------------------


def test_due_times_do_not_drift() -> None:
    schedule = Schedule(1_000.0, 3_000, 300_000)
    assert schedule.due(0) == 1_000.0
    assert math.isclose(schedule.due(300_000), 1_100.0, abs_tol=1e-9)


@given(st.integers(1, 40), st.integers(0, 200), st.integers())
def test_each_round_has_everybody_once(users: int, n: int, seed: int) -> None:
    order = list(rounds(users, n, random.Random(seed)))
    assert len(order) == n
    for at in range(0, n - users + 1, users):
        assert sorted(order[at : at + users]) == list(range(users))
    assert order == list(rounds(users, n, random.Random(seed)))


async def test_a_stall_shifts_no_due_time_and_all_that_is_late_goes_out_at_once() -> None:
    clock = [0.0]
    fired: list[tuple[int, float, float]] = []

    def fire(i: int, due: float) -> None:
        fired.append((i, due, clock[0]))
        if i == 2:
            clock[0] += 1.0  # the world stood still for a second
        if i == 20:
            clock[0] += 10.0

    def now() -> float:
        clock[0] += 0.0005
        return clock[0]

    await asyncio.wait_for(Pacer(100, 200, fire, now).run(), 20)
    assert [i for i, _, _ in fired] == list(range(200))
    start = fired[0][1]
    assert math.isclose(start, LEAD_S, abs_tol=0.01)
    assert all(math.isclose(due, start + i / 100) for i, due, _ in fired)
    assert all(at >= due for _, due, at in fired)
    assert fired[3][2] - fired[3][1] > 0.9  # it tells how late it was, and does not start the count anew


async def test_an_error_while_firing_ends_the_run() -> None:
    def fire(i: int, due: float) -> None:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await Pacer(1_000, 5, fire).run()


# ---- percentiles ----------------------------------------------------------------------------------------------------------------


def test_percentiles_are_of_nearest_rank() -> None:
    values = [float(v) for v in range(1, 101)]
    assert [latency.percentile(values, p) for p in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert latency.percentile([7.0], 50) == 7.0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.floats(0.1, 100))
def test_a_percentile_has_so_many_at_or_below_it(values: list[float], p: float) -> None:
    values.sort()
    found = latency.percentile(values, p)
    assert sum(v <= found for v in values) >= len(values) * p / 100 - 1e-6
    assert sum(v < found for v in values) <= len(values) * p / 100


def test_what_never_came_cannot_make_the_figures_better() -> None:
    figures = latency.summary([0.001] * 97 + [math.inf] * 3, "ack_")
    assert (figures["ack_p50_ms"], figures["ack_p95_ms"], figures["ack_p99_ms"], figures["ack_max_ms"]) == (1.0, 1.0, None, None)


def test_no_values_give_no_figures() -> None:
    assert set(latency.summary([]).values()) == {None}


# ---- bytes ----------------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=70_000 % 65_536), st.integers(0, 2**32 - 1))
def test_frames_are_what_websockets_reads(payload: bytes, mask: int) -> None:
    assert read_with_websockets(wire.frame(payload, mask), mask=True).data == payload


@given(st.lists(st.one_of(st.binary(max_size=300), st.just(b"y" * 70_000)), max_size=6), st.data())
def test_frames_are_read_however_they_are_cut(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(Frame(Opcode.TEXT, p).serialize(mask=False) for p in payloads)
    cut = data.draw(st.integers(0, len(stream)))
    first, rest = wire.read_frames(stream[:cut])
    second, rest = wire.read_frames(rest + stream[cut:])
    assert [p for _, p in first + second] == payloads
    assert rest == b""


def test_a_message_carries_its_number_thrice() -> None:
    frame = json.loads(bytes(read_with_websockets(wire.message(1_234, 1_236, "bob", 0xAB, 150, 99), mask=True).data))
    assert frame["id"] == 1_236
    assert frame["cid"] == "000000ab-0000-4000-8000-000000001234"
    assert frame["body"].startswith("0000001234 ")
    assert len(frame["body"]) == 150


def test_acks_and_entries_are_recognised() -> None:
    assert wire.read_ok(b'{"t":"ok","id":7,"c":"12","seq":64,"ts":1790000001000}') == (7, 64, False)
    assert wire.read_ok(b'{"t":"ok","id":7,"c":"12","seq":64,"ts":1790000001000,"dup":true}') == (7, 64, True)
    entry = b'{"t":"entry","c":"12","seq":61,"ts":1,"from":"bob","to":"al","kind":"message","body":"0000000042 xx"}'
    assert wire.read_entry(entry) == (42, 61)
    for other in (b'{"t":"err","id":7,"code":"bad_id"}', b'{"t":"ok","id":7}', entry.replace(b"0000000042", b"hi")):
        assert wire.read_ok(other) is None
        assert wire.read_entry(other) is None


# ---- verdict --------------------------------------------------------------------------------------------------------------------

MOST = {"lost": 0.0, "p99_ms": 500.0}


@pytest.mark.parametrize(
    ("figures", "over", "void"),
    [
        ({"lost": 0, "p99_ms": 500.0}, 0, False),
        ({"lost": 1, "p99_ms": 500.1}, 2, False),
        ({"lost": 0, "p99_ms": None}, 1, False),
        ({"lost": 0, "p99_ms": 1.0, "generator_lag_p99_ms": 10.1}, 0, True),
        ({"lost": 0, "p99_ms": 1.0, "generator_lag_p99_ms": 10.0}, 0, False),
    ],
)
def test_the_verdict(figures: dict[str, Any], over: int, void: bool) -> None:
    sentences, is_void = report.judge(figures, MOST)
    assert (len(sentences), is_void) == (over, void)
