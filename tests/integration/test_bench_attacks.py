"""The bench's attacks and slow lines: honest users beside them, what the attacker is told, and that a
fault of the server's shows.
"""

from __future__ import annotations

import pytest

from tests.fix_bench import Bench

pytestmark = pytest.mark.slow


def test_an_attack_is_felt_by_the_honest_and_told_what_it_did(bench: Bench) -> None:
    _, figures, said = bench("attack", "--kind=pongs,unknown,reads", "--seconds=2")
    none, pongs, unknown, reads = figures["windows"]
    assert [one["kind"] for one in figures["windows"]] == ["none", "pongs", "unknown", "reads"]
    assert (none["dials"], none["closes"]) == (0, {})
    assert pongs["closes"].keys() == {"4008"}, said
    assert unknown["closes"].keys() <= {"4008", "4009"}
    assert unknown["attacker_errors"]["unknown_type"] > 0
    assert reads["bytes_in"] > 1_000_000, "pages of 200 KB"
    assert (
        figures["wrong_closes"],
        figures["lost"],
        figures["dropped_n"],
        figures["unanswered"],
        figures["kept_out"],
    ) == (0, 0, 0, 0, 0), said
    assert all(one["ping_p99_ms"] > 0 and one["rss_most_mib"] > 20 for one in figures["windows"])


def test_an_attacker_who_is_not_closed_is_a_fault(bench: Bench) -> None:
    """A real one: the server counts no frames."""
    _, figures, _ = bench(
        "attack", "--kind=pongs", "--seconds=1", "--set=frames_per_s=1000000", "--set=frames_burst=1000000"
    )
    assert figures["wrong_closes"] == 1
    assert "wrong_closes" in {sentence.split()[0] for sentence in figures["over"]}


def test_workers_live_through_an_attack(bench: Bench) -> None:
    _, figures, said = bench("attack", "--kind=fragments", "--seconds=2", "--connections=20", "--workers=2")
    assert (figures["workers_died"], figures["wrong_closes"], figures["dropped_n"]) == (0, 0, 0), said
    assert figures["windows"][1]["connections"] == 20


def test_a_client_on_a_slow_line_gets_all_on_one_connection(bench: Bench) -> None:
    _, figures, said = bench("slowline", "--mb=1", "--mbit=4")
    assert (figures["missing"], figures["wrong_n"], figures["connections"], figures["lost_connections"]) == (
        0,
        0,
        1,
        0,
    ), said
    assert figures["seconds"] > 1.5, "the line was slow"
    assert 1.0 < figures["mbit_read"] < 4.4


def test_what_a_slow_line_does_not_bring_is_missing(bench: Bench) -> None:
    """A real fault: the server sends less than was missed, and says `page` instead."""
    _, figures, _ = bench("slowline", "--mb=1", "--mbit=8", "--set=resync_entries_max=100", "--drain=1")
    assert figures["missing"] == 500
    assert "missing" in {sentence.split()[0] for sentence in figures["over"]}
