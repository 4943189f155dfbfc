"""Each scenario of the bench but `send`, attacks and slow lines, as a command: that it counts what it
is about.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import fill
from tests.fix_bench import Bench

pytestmark = pytest.mark.slow


def test_a_storm_of_hellos_and_an_idle_crowd(bench: Bench) -> None:
    _, figures, _ = bench("connect", "--connections=100", "--at-once=20")
    assert (figures["connections"], len(figures["windows"]), figures["dropped"]) == (100, 10, {})
    _, figures, _ = bench("idle", "--connections=100")
    assert figures["connections"] == 100
    assert figures["handles"] > 200


def test_all_come_back_for_what_they_missed(bench: Bench) -> None:
    _, figures, said = bench(
        "resync", "--clients=60", "--storms=2", "--storm-s=2", "--beside=100", "--beside-connections=10"
    )
    assert (figures["missing"], figures["lost"], figures["duplicated"], figures["reordered"], figures["stray"]) == (
        0,
        0,
        0,
        0,
        0,
    ), said
    assert len(figures["windows"]) == 2
    assert figures["back_max_ms"] == pytest.approx(1000 * figures["seconds_to_all"], rel=0.002, abs=1)


def test_what_a_resync_does_not_bring_is_missing(bench: Bench) -> None:
    """A real fault: the server sends less than was missed, and says `page` instead."""
    flags = (
        "--clients=10",
        "--unread=5",
        "--storm-s=1",
        "--beside-connections=4",
        "--drain=2",
        "--set=resync_entries_max=4",
    )
    _, figures, _ = bench("resync", *flags)
    assert figures["missing"] == 50
    assert figures["lost"] == 50
    assert {"missing", "lost"} <= {sentence.split()[0] for sentence in figures["over"]}


def test_presence_is_seen_by_all_who_watch(bench: Bench) -> None:
    flags = ("--connections=20", "--watchers=4", "--rate=20", "--seconds=2", "--beside=50", "--beside-connections=4")
    _, figures, said = bench("presence", *flags)
    assert (figures["changes"], figures["due"], figures["seen"], figures["unasked"]) == (40, 160, 160, 0), said
    assert figures["send_delivered"] == 100
    _, figures, said = bench("presence", "--fan", "--connections=21", "--rate=1", "--seconds=2")
    assert (figures["due"], figures["seen"]) == (40, 40), said


def test_history_is_filled_once_and_read_at_all_depths(bench: Bench, tmp_path: Path) -> None:
    flags = ["history", "--rows=20k", f"--fill-dir={tmp_path / 'filled'}", "--seconds=2", "--pages=60", "--lists=20"]
    flags += ["--write=50", "--write-connections=4"]
    _, figures, said = bench(*flags)
    assert (figures["asked"], figures["unanswered"], figures["wrong"], figures["errors"]) == (160, 0, 0, {}), said
    assert {kind.split()[0] for kind in figures["by_depth_and_size_p95_ms"]} == {"0", "0.1", "0.5", "0.9", "1", "list"}
    filled_at = json.loads((tmp_path / "filled" / fill.MARK).read_text())["at"]
    bench(*flags, "--write=0", "--seconds=1")
    assert json.loads((tmp_path / "filled" / fill.MARK).read_text())["at"] == filled_at


def test_a_soak_sees_people_come_back_and_reads_what_the_server_holds(bench: Bench) -> None:
    _, figures, said = bench("soak", "--seconds=6", "--rate=100", "--connections=20", "--every=0.5", "--churn=0.2")
    assert (figures["sent"], figures["lost"], figures["duplicated"], figures["reordered"]) == (600, 0, 0, 0), said
    assert figures["returns"] > 5
    assert figures["pss_slope_percent"] is not None
    assert min(value for _, value in figures["series"]["postgres_plans"]) > 0
    assert min(value for _, value in figures["series"]["server_handles"]) > 20


def test_the_highest_rate_is_searched_for_and_held_to_a_budget(bench: Bench) -> None:
    flags = ("--start=100", "--limit=200", "--window=1", "--final=1", "--connections=4", "--budget-rate=201")
    # On a busy machine windows would fail, and be tried again, down to one message a second.
    patient = ("--budget-p95-ms=5000", "--budget-p99-ms=5000", "--resolution=0.5")
    status, figures, _ = bench("saturate", *flags, *patient)
    assert figures["tried"][-1]["rate"] == figures["highest_rate"] or figures["highest_rate"] is None
    assert status == 1


@pytest.mark.cluster
def test_two_nodes_are_measured_against_one(bench: Bench) -> None:
    _, figures, said = bench("fanout", "--rate=100", "--connections=8", "--seconds=1")
    assert (figures["n1_delivered"], figures["n2_delivered"], figures["n2_lost"]) == (100, 100, 0), said
    parts = [figures[f"n2_{part}_cpu_us_per_msg"] for part in ("server", "postgres", "redis")]
    assert figures["n2_cpu_us_per_msg"] == pytest.approx(sum(parts), abs=1)
    assert {"n2_node0_cpu_us_per_msg", "n2_node1_cpu_us_per_msg", "n2_to_n1"} <= figures.keys()


@pytest.mark.cluster
def test_a_rate_and_connections_of_each_node(bench: Bench) -> None:
    _, figures, said = bench(
        "fanout", "--nodes=3,2", "--rate-per-node=40", "--cross=0.5", "--connections=6", "--seconds=1"
    )
    assert (figures["n3_delivered"], figures["n2_delivered"]) == (120, 80), said
    assert (figures["n3_connections"], figures["n2_connections"]) == (18, 12)
    assert figures["n2_to_n3"] > 0


@pytest.mark.cluster
def test_a_node_dies_and_its_users_go_on_at_another_one(bench: Bench) -> None:
    _, figures, said = bench("fanout", "--nodes=2", "--rate=200", "--connections=12", "--seconds=3", "--kill")
    names = ("acked", "delivered", "lost", "duplicated", "reordered", "stray", "returns")
    assert [figures[f"n2_{name}"] for name in names] == [600, 600, 0, 0, 0, 0, 6], said


@pytest.mark.cluster
def test_presence_and_a_storm_over_several_nodes(bench: Bench) -> None:
    _, figures, said = bench("presence", "--nodes=3", "--connections=12", "--rate=10", "--seconds=2")
    assert (figures["due"], figures["seen"], figures["nodes"]) == (20, 20, 3), said
    assert figures["node2_cpu_us_per_msg"] > 0
    _, figures, said = bench("resync", "--nodes=2", "--clients=40", "--storm-s=1", "--beside=50")
    assert (figures["missing"], figures["lost"], figures["stray"]) == (0, 0, 0), said
    _, figures, said = bench("idle", "--nodes=2", "--connections=20")
    assert {"node_cpu_ms_per_s", "postgres_cpu_ms_per_s", "redis_cpu_ms_per_s"} <= figures.keys(), said


def test_users_with_contacts_write_over_a_log_that_is_kept(bench: Bench, tmp_path: Path) -> None:
    contacts = ("--contacts=6", f"--contacts-dir={tmp_path / 'filled'}")
    _, figures, said = bench("send", *contacts, "--log=3k", "--connections=20", "--rate=200", "--seconds=1")
    assert (figures["conversations"], figures["delivered"], figures["lost"], figures["stray"]) == (60, 200, 0, 0), said
    filled = (tmp_path / "filled" / fill.MARK).read_text()
    _, figures, said = bench(
        "send", *contacts, "--log=3k", "--connections=20", "--rate=50", "--seconds=1", "--ack=all", "--read=0.5"
    )
    assert (figures["delivered"], figures["lost"], figures["unanswered"]) == (50, 0, 0), said
    assert (tmp_path / "filled" / fill.MARK).read_text() == filled


def test_after_a_restart_a_mark_lists_nothing_and_the_cold_get_all(bench: Bench, tmp_path: Path) -> None:
    flags = ("--connections=20", "--contacts=5", f"--contacts-dir={tmp_path / 'filled'}")
    _, figures, said = bench("restart", *flags)
    assert (figures["cold_listed"], figures["marks_listed"], figures["lost"]) == (100, 0, 0), said
    assert figures["marks_server_cpu_us_per_hello"] > 0


def test_a_storm_of_users_with_contacts_lists_what_changed(bench: Bench, tmp_path: Path) -> None:
    flags = ("--clients=40", "--contacts=5", "--marks", f"--contacts-dir={tmp_path / 'filled'}", "--storm-s=1")
    for _ in range(2):  # the log is kept, and so are the writers
        _, figures, said = bench("resync", *flags, "--beside=0", "--unread=3")
        assert (figures["missing"], figures["lost"], figures["duplicated"], figures["stray"]) == (0, 0, 0, 0), said
