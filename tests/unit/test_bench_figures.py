"""The bench's schedule, percentiles, bytes and verdict, and what it makes of flags."""

from __future__ import annotations

import asyncio
import json
import math
import random
from argparse import ArgumentTypeError
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from bench import latency, report, watch, wire
from bench.latency import Latencies
from bench.loads.reads import page_before
from bench.loads.statuses import watchers_of
from bench.pace import LEAD_S, Pacer, Schedule, rounds, weighted
from bench.scenarios import saturate, send
from bench.sending import shares, windows_of


def read_with_websockets(data: bytes, mask: bool) -> Frame:
    reader = StreamReader()
    reader.feed_data(data)
    parsing = Frame.parse(reader.read_exact, mask=mask)
    with pytest.raises(StopIteration) as end:
        next(parsing)
    frame: Frame = end.value.value
    return frame


# ---- schedule ------------------------------------------------------------------------------------


def test_due_times_do_not_drift() -> None:
    schedule = Schedule(1_000.0, 3_000, 300_000)
    assert schedule.due(0) == 1_000.0
    assert math.isclose(schedule.due(300_000), 1_100.0, abs_tol=1e-9)


def test_a_burst_is_due_at_once_and_the_rate_stays() -> None:
    schedule = Schedule(0.0, 100, 1_000, burst=50)
    assert [schedule.due(i) for i in (0, 49, 50, 99, 100)] == [0.0, 0.0, 0.5, 0.5, 1.0]


@given(st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 20))
def test_a_hot_pair_gets_its_share_and_the_others_go_round(hot: float, pairs: int) -> None:
    order = list(weighted(2 * pairs, 4_000, hot, random.Random(1)))
    assert len(order) == 4_000
    assert set(order) <= set(range(2 * pairs))
    share = sum(u < 2 for u in order) / 4_000
    assert share == pytest.approx(1.0 if pairs == 1 else hot or 1 / pairs, abs=0.05)


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


async def test_who_has_the_loop_for_long_fires_what_is_due_in_between() -> None:
    clock, fired = [0.0], list[int]()
    pacer = Pacer(100, 5, lambda i, due: fired.append(i), lambda: clock[0], start=0.0)
    for at, count in ((0.0, 1), (0.005, 1), (0.01, 2), (0.025, 3), (9.0, 5), (9.1, 5)):
        assert (at >= pacer.next_due) == (len(fired) < count)
        clock[0] = at
        pacer.fire_due()
        assert fired == list(range(count))
    assert pacer.next_due == math.inf
    await pacer.run()  # and the timer finds nothing left


async def test_an_error_while_firing_ends_the_run() -> None:
    def fire(i: int, due: float) -> None:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await Pacer(1_000, 5, fire).run()


# ---- percentiles ---------------------------------------------------------------------------------


def test_percentiles_are_of_nearest_rank() -> None:
    found = Latencies(v / 1000 for v in range(1, 101))
    assert [round(found.at(p) or 0) for p in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert Latencies([0.007]).at(50) == pytest.approx(7.0, rel=0.001)


@given(st.lists(st.floats(1e-6, 3_000), min_size=1, max_size=300), st.floats(0.1, 100))
@settings(max_examples=30)
def test_a_percentile_is_within_a_thousandth_of_the_exact_one(values: list[float], p: float) -> None:
    values.sort()
    ranks = {
        max(0, math.ceil(len(values) * p / 100) - 1),
        max(0, round(len(values) * p / 100) - 1),
        max(0, int(len(values) * p / 100 + 0.5) - 1),
    }
    found = Latencies(values).at(p)
    assert found is not None
    assert any(math.isclose(found, values[rank] * 1000, rel_tol=0.0011, abs_tol=0.0015) for rank in ranks)


def test_histograms_of_several_processes_add_up() -> None:
    parts = [Latencies([0.001] * 90), Latencies([0.5] * 9 + [math.inf])]
    total = latency.merged(part.text() for part in parts)
    assert total.n == 100
    assert total.at(90) == pytest.approx(1.0, rel=0.001)
    assert total.at(99) == pytest.approx(500, rel=0.001)
    assert total.at(100) is None


def test_a_curve_rises_and_ends_where_one_value_is_left() -> None:
    curve = Latencies(v / 1000 for v in range(1, 1001)).curve()
    assert [ms for _, ms in curve] == sorted(ms for _, ms in curve)
    assert curve[-1][0] == 100
    assert curve[-2][0] <= 99.9
    assert Latencies().curve() == []


def test_an_hour_is_never() -> None:
    assert Latencies([3_590.0]).at(100) == pytest.approx(3_590_000, rel=0.001)
    assert Latencies([3_601.0]).at(100) is None


def test_what_never_came_cannot_make_the_figures_better() -> None:
    figures = latency.summary([0.001] * 97 + [math.inf] * 3, "ack_")
    assert (figures["ack_p50_ms"], figures["ack_p95_ms"], figures["ack_p99_ms"], figures["ack_max_ms"]) == (
        1.0,
        1.0,
        None,
        None,
    )


def test_no_values_give_no_figures() -> None:
    assert set(latency.summary([]).values()) == {None}


# ---- bytes ---------------------------------------------------------------------------------------


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


def test_a_retry_differs_by_saying_so() -> None:
    first, again = (
        json.loads(bytes(read_with_websockets(wire.message(7, 9, "bob", 1, 50, 3, retry), mask=True).data))
        for retry in (False, True)
    )
    assert again == first | {"retry": True}


def test_the_mark_of_a_welcome_is_as_it_was_given() -> None:
    last = b'{"t":"welcome","id":1,"conversations":[],"more":false,"since":"5f1c:7/123"}'
    assert wire.mark(last) == "5f1c:7/123"
    assert wire.mark(b'{"t":"welcome","id":1,"more":true}') is None


def test_cursors_presence_and_names_are_recognised() -> None:
    ack = read_with_websockets(wire.cursor("ack", 8, "bob", 61, 7), mask=True).data
    assert json.loads(bytes(ack)) == {"t": "ack", "id": 8, "to": "bob", "seq": 61}
    ok = b'{"t":"ok","id":11,"c":"12","delivered":61,"read":57}'
    assert wire.read_cursors(ok) == 11
    assert wire.read_ok(ok) is None
    assert wire.conversation(ok) == "12"
    assert wire.read_presence(b'{"t":"presence","user":"bob","state":"offline","v":18,"seen":1790000002000}') == (
        "bob",
        "offline",
        18,
    )
    assert wire.epoch(b'{"t":"welcome","id":1,"epoch":"5f1c","ts":1}') == "5f1c"


def test_acks_and_entries_are_recognised() -> None:
    assert wire.read_ok(b'{"t":"ok","id":7,"c":"12","seq":64,"ts":1790000001000}') == (7, 64, False)
    assert wire.read_ok(b'{"t":"ok","id":7,"c":"12","seq":64,"ts":1790000001000,"dup":true}') == (7, 64, True)
    entry = b'{"t":"entry","c":"12","seq":61,"ts":1,"from":"bob","to":"al","kind":"message","body":"0000000042 xx"}'
    assert wire.read_entry(entry) == (42, 61)
    for other in (b'{"t":"err","id":7,"code":"bad_id"}', b'{"t":"ok","id":7}', entry.replace(b"0000000042", b"hi")):
        assert wire.read_ok(other) is None
        assert wire.read_entry(other) is None


# ---- verdict -------------------------------------------------------------------------------------

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


@pytest.mark.parametrize(("rate", "over"), [(20_000, 0), (19_999, 1), (None, 1)])
def test_some_figures_are_to_be_high(rate: float | None, over: int) -> None:
    assert len(report.judge({"highest_rate": rate}, {}, {"highest_rate": 20_000})[0]) == over


def test_any_generator_that_lags_makes_a_run_void() -> None:
    assert report.judge({"n2_generator_lag_p99_ms": 11.0, "generator_lag_p99_ms": 1.0}, {})[1]
    assert report.judge({"generator_lag_p99_ms": None}, {})[1]  # so many were never sent


# ---- what is made of flags -----------------------------------------------------------------------


@given(st.integers(2, 500), st.integers(1, 4), st.sampled_from([0.0, 0.5]), st.integers(1, 3))
def test_generators_share_whole_pairs_and_the_whole_rate(pairs: int, generators: int, hot: float, devices: int) -> None:
    if pairs // devices < generators:
        return
    parts = shares(2 * pairs, 1_000, generators, hot, devices)
    assert sum(p.rate for p in parts) == pytest.approx(1_000)
    assert all(p.connections % (2 * devices) == 0 for p in parts)
    assert sum(p.connections for p in parts) == 2 * pairs // (2 * devices) * 2 * devices
    assert parts[0].hot * parts[0].rate == pytest.approx(hot * 1_000)


def test_windows_are_a_second_or_more() -> None:
    assert [windows_of(s) for s in (0.5, 1, 3.9, 10, 600)] == [1, 1, 3, 10, 10]


def test_a_body_mix_is_read_and_must_add_up() -> None:
    assert send.body_mix("0.8:50-200,0.2:1000") == [[0.8, 50, 200], [0.2, 1000, 1000]]
    for wrong in ("0.5:1-2", "x", "1:a-b", ""):
        with pytest.raises(ArgumentTypeError):
            send.body_mix(wrong)


@pytest.mark.parametrize("bound", [700, 1_000, 5_000, 12_345, 99_000])
@pytest.mark.parametrize("start", [500, 1_000, 50_000])
async def test_the_highest_rate_is_found_within_the_resolution(start: float, bound: float) -> None:
    tried: list[float] = []

    async def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= bound

    found = await saturate.search(start, 1e6, 0.05, holds)
    assert found <= bound < found / 0.94
    assert len(tried) < 20
    assert len(tried) == len(set(tried))


@pytest.mark.parametrize(("limit", "found"), [(4_000.0, 4_000.0), (3_000.0, 3_000.0)])
async def test_the_search_stops_at_its_limit(limit: float, found: float) -> None:
    async def holds(rate: float) -> bool:
        assert rate <= limit
        return True

    assert await saturate.search(500, limit, 0.05, holds) == found


async def test_a_server_that_holds_nothing_has_no_highest_rate() -> None:
    async def holds(rate: float) -> bool:
        return False

    assert await saturate.search(500, 1e6, 0.05, holds) == 0.0


@given(st.integers(0, 10_000), st.integers(1, 100_000), st.floats(0, 1), st.integers())
def test_a_page_is_asked_for_within_the_log(base: int, rows: int, depth: float, seed: int) -> None:
    before = page_before(base + 1, base + rows, depth, random.Random(seed))
    assert base + 1 < before <= base + rows + 1


def test_watching_is_mutual_and_everybody_has_as_many_watchers() -> None:
    for n, watchers in ((10, 1), (10, 4), (40, 20)):
        graph = watchers_of(n, watchers, fan=False)
        assert all(len(set(several)) == watchers and u not in several for u, several in enumerate(graph))
        assert all(u in graph[w] for u, several in enumerate(graph) for w in several)
    assert watchers_of(4, 1, fan=True) == [[1, 2, 3], [], [], []]


# ---- does it grow? -------------------------------------------------------------------------------


def test_a_slope_is_of_the_last_part_alone() -> None:
    line = [[float(s), 100.0 + s if s < 300 else 400.0] for s in range(0, 601, 5)]
    assert watch.slope_percent(line, 290) == pytest.approx(0, abs=0.01)
    assert (watch.slope_percent(line, 600) or 0) > 50
    rising = [[float(s), 100.0 + s / 300] for s in range(0, 301, 5)]
    assert watch.slope_percent(rising, 300) == pytest.approx(1, abs=0.01)
    assert watch.slope_percent([[0, 1]], 300) is None


def test_growth_sees_a_leak_through_ups_and_downs() -> None:
    rng = random.Random(1)
    steady = [[float(s), 50.0 + rng.choice([0, 0, 0, 1, 3])] for s in range(300)]
    leaking = [[at, n + at // 60] for at, n in steady]
    assert watch.growth(steady, 300) == 0
    assert (watch.growth(leaking, 300) or 0) >= 2


def test_plans_are_counted_in_what_a_backend_says() -> None:
    said = """LOG:  level: 2; CacheMemoryContext: 1 total
LOG:  level: 3; CachedPlanSource: 4096 total in 3 blocks
LOG:  level: 4; CachedPlanQuery: 8192 total
LOG:  level: 3; CachedPlanSource: 4096 total in 3 blocks
LOG:  Grand total: 1
"""
    assert watch.count_plans(said) == 2
