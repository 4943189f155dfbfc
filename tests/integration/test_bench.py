"""`python -m bench` as a command: it starts and stops servers of its own, and its exit status, JSON
and page say the same.

Tiny runs, of no worth as measurements: that each scenario counts what it is about, and that what
goes wrong shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bench import fill
from bench.target import TargetError

ROOT = Path(__file__).parents[2]
RUN_S_MAX = 90.0
# Waits that make the figures good, which is not what is tested here.
QUICK = {
    "idle": ("--settle-s=0.1",), "resync": ("--flush-s=0.1",),
    **dict.fromkeys(("send", "fanout", "soak", "saturate"), ("--warm-wal-mib=1",)),
}  # fmt: skip
KEYS = {
    "sent",
    "acked",
    "lost",
    "duplicated",
    "reordered",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "ack_p50_ms",
    "ack_p95_ms",
    "ack_p99_ms",
    "rate",
    "connections",
    "seconds",
    "curves",
    "windows",
    "options",
    "server_cpu_us_per_msg",
    "postgres_cpu_us_per_msg",
    "generator_lag_p99_ms",
    "machine",
    "versions",
    "settings",
}


def is_nothing_left(tmp_path: Path) -> bool:
    """No process with this test's folder among its arguments: a bench's servers have it, as it is
    their temporary folder.
    """
    commands = (command_of(int(folder.name)) for folder in Path("/proc").glob("[0-9]*"))
    return not any(bytes(tmp_path) in command for command in commands)


def command_of(pid: int) -> bytes:
    """Empty where there is none, or only its status."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def start(tmp_path: Path, *flags: str) -> subprocess.Popen[str]:
    """A bench that goes on until it is told to stop; gives it once it measures."""
    command, environment = [sys.executable, "-m", "bench", *flags], {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    assert any("measured" in line for line in process.stderr)
    return process


def bench(tmp_path: Path, *flags: str) -> tuple[int, dict[str, Any], str]:
    out = tmp_path / "out.json"
    quick = QUICK.get(flags[0], ())
    command = [sys.executable, "-m", "bench", flags[0], *quick, *flags[1:], "--json", str(out)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_S_MAX, check=False, env=environment
    )
    assert out.exists(), done.stdout + done.stderr
    figures = json.loads(out.read_text())
    assert done.returncode == (1 if figures["void"] or figures["over"] else 0), done.stdout
    page = out.with_suffix(".html").read_text()
    assert ("Void" if figures["void"] else "Over budget" if figures["over"] else "Within budget") in page
    return done.returncode, figures, done.stdout


def test_send_counts_every_message_and_tells_what_it_cost(tmp_path: Path) -> None:
    _, figures, _ = bench(tmp_path, "send", "--rate=300", "--connections=20", "--seconds=1")
    assert figures.keys() >= KEYS
    assert (figures["sent"], figures["acked"], figures["delivered"]) == (300, 300, 300)
    assert (figures["lost"], figures["duplicated"], figures["reordered"], figures["stray"]) == (0, 0, 0, 0)
    assert 0 < figures["ack_p50_ms"] <= figures["ack_p99_ms"]
    assert figures["server_cpu_us_per_msg"] > 0
    assert is_nothing_left(tmp_path)


def test_over_budget_is_status_1(tmp_path: Path) -> None:
    status, figures, _ = bench(
        tmp_path, "send", "--rate=100", "--connections=4", "--seconds=1", "--budget-p99-ms=0.001"
    )
    assert any(sentence.startswith("p99_ms") for sentence in figures["over"])
    assert status == 1


def test_what_the_server_refuses_is_lost(tmp_path: Path) -> None:
    """A real fault: the server's rate limit is on, so all but the first ten of each user are
    refused.
    """
    flags = ("--set=rate_messages=10", "--set=rate_per_ms=60000", "--set=rate_penalties_max=64")
    _, figures, said = bench(tmp_path, "send", "--rate=200", "--connections=4", "--seconds=1", "--drain=2", *flags)
    assert figures["lost"] == figures["errors"]["rate_limited"] + figures["errors"]["blocked"] > 0, said
    assert figures["p99_ms"] is None


@pytest.mark.parametrize(
    ("flag", "word"), [("--url=http://x/ws", "ws://"), ("--url=ws://127.0.0.1:1/ws", "--keys-file")]
)
def test_a_wrong_target_is_one_line_and_status_2(flag: str, word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "send", flag],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
        check=False,
    )
    assert done.returncode == 2
    assert word in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_bench_that_is_told_to_stop_leaves_nothing_running(tmp_path: Path) -> None:
    with start(tmp_path, "send", "--rate=50", "--connections=4", "--seconds=60") as process:
        process.send_signal(signal.SIGTERM)
        assert "nothing was written" in process.communicate(timeout=RUN_S_MAX)[1]
    assert process.returncode == 2
    assert is_nothing_left(tmp_path)
    assert list(tmp_path.glob("chatd-bench-*")) == []


def test_nothing_outlives_a_bench_that_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, "send", "--rate=50", "--connections=4", "--seconds=60")
    children = {int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}
    assert len(children) >= 4  # PostgreSQL, chatd, a generator, watchers
    process.kill()
    process.communicate()
    until = time.monotonic() + RUN_S_MAX
    while alive := {pid for pid in children if command_of(pid)}:
        assert time.monotonic() < until, alive
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [["--devices=3", "--connections=24", "--burst=10"], ["--ack=all", "--read=0.3", "--hot=0.5"], ["--generators=2"]],
)
def test_send_in_its_varieties(tmp_path: Path, flags: list[str]) -> None:
    _, figures, said = bench(
        tmp_path, "send", "--rate=200", "--connections=20", "--seconds=1", "--body-mix=0.9:50-200,0.1:1500-2000", *flags
    )
    assert (figures["sent"], figures["delivered"], figures["lost"], figures["stray"]) == (200, 200, 0, 0), said
    if "--ack=all" in flags:
        assert figures["requests"]["ack"] >= 200
        assert figures["requests"]["receipt"] > 0
        assert 0.2 < figures["requests"]["read"] / figures["requests"]["ack"] < 0.4
        assert figures["unanswered"] == 0


@pytest.mark.slow
def test_a_storm_of_hellos_and_an_idle_crowd(tmp_path: Path) -> None:
    _, figures, _ = bench(tmp_path, "connect", "--connections=100", "--at-once=20")
    assert (figures["connections"], len(figures["windows"]), figures["dropped"]) == (100, 10, {})
    _, figures, _ = bench(tmp_path, "idle", "--connections=100")
    assert figures["connections"] == 100
    assert figures["handles"] > 200


@pytest.mark.slow
def test_all_come_back_for_what_they_missed(tmp_path: Path) -> None:
    _, figures, said = bench(
        tmp_path, "resync", "--clients=60", "--storms=2", "--storm-s=2", "--beside=100", "--beside-connections=10"
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


@pytest.mark.slow
def test_what_a_resync_does_not_bring_is_missing(tmp_path: Path) -> None:
    """A real fault: the server sends less than was missed, and says `page` instead."""
    flags = (
        "--clients=10",
        "--unread=5",
        "--storm-s=1",
        "--beside-connections=4",
        "--drain=4",
        "--set=resync_entries_max=4",
    )
    _, figures, _ = bench(tmp_path, "resync", *flags)
    assert figures["missing"] == 50
    assert figures["lost"] == 50
    assert {"missing", "lost"} <= {sentence.split()[0] for sentence in figures["over"]}


@pytest.mark.slow
def test_presence_is_seen_by_all_who_watch(tmp_path: Path) -> None:
    flags = ("--connections=20", "--watchers=4", "--rate=20", "--seconds=2", "--beside=50", "--beside-connections=4")
    _, figures, said = bench(tmp_path, "presence", *flags)
    assert (figures["changes"], figures["due"], figures["seen"], figures["unasked"]) == (40, 160, 160, 0), said
    assert figures["send_delivered"] == 100
    _, figures, said = bench(tmp_path, "presence", "--fan", "--connections=21", "--rate=1", "--seconds=2")
    assert (figures["due"], figures["seen"]) == (40, 40), said


@pytest.mark.slow
def test_history_is_filled_once_and_read_at_all_depths(tmp_path: Path) -> None:
    flags = ["history", "--rows=20k", f"--fill-dir={tmp_path / 'filled'}", "--seconds=2", "--pages=60", "--lists=20"]
    flags += ["--write=50", "--write-connections=4"]
    _, figures, said = bench(tmp_path, *flags)
    assert (figures["asked"], figures["unanswered"], figures["wrong"], figures["errors"]) == (160, 0, 0, {}), said
    assert {kind.split()[0] for kind in figures["by_depth_and_size_p95_ms"]} == {"0", "0.1", "0.5", "0.9", "1", "list"}
    filled_at = json.loads((tmp_path / "filled" / fill.MARK).read_text())["at"]
    bench(tmp_path, *flags)
    assert json.loads((tmp_path / "filled" / fill.MARK).read_text())["at"] == filled_at


@pytest.mark.slow
def test_a_soak_sees_people_come_back_and_reads_what_the_server_holds(tmp_path: Path) -> None:
    _, figures, said = bench(
        tmp_path, "soak", "--seconds=6", "--rate=100", "--connections=20", "--every=0.5", "--churn=0.2"
    )
    assert (figures["sent"], figures["lost"], figures["duplicated"], figures["reordered"]) == (600, 0, 0, 0), said
    assert figures["returns"] > 5
    assert figures["pss_slope_percent"] is not None
    assert min(value for _, value in figures["series"]["postgres_plans"]) > 0
    assert min(value for _, value in figures["series"]["server_handles"]) > 20


@pytest.mark.slow
def test_the_highest_rate_is_searched_for(tmp_path: Path) -> None:
    flags = ("--start=100", "--limit=200", "--window=1", "--final=1", "--connections=4", "--warm-wal-mib=16")
    _, figures, _ = bench(tmp_path, "saturate", *flags)
    assert figures["tried"][-1]["rate"] == figures["highest_rate"] or figures["highest_rate"] is None
    flags = ("--start=100", "--limit=200", "--window=1", "--final=1", "--connections=4", "--budget-rate=201")
    status, figures, _ = bench(tmp_path, "saturate", *flags)
    assert status == 1


@pytest.mark.cluster
@pytest.mark.slow
def test_two_nodes_are_measured_against_one(tmp_path: Path) -> None:
    _, figures, said = bench(tmp_path, "fanout", "--rate=100", "--connections=8", "--seconds=1")
    assert (figures["one_delivered"], figures["two_delivered"], figures["two_lost"]) == (100, 100, 0), said
    assert figures["two_redis_cpu_us_per_msg"] >= 0
    assert {"two_node0_cpu_us_per_msg", "two_node1_cpu_us_per_msg", "server_two_to_one"} <= figures.keys()


@pytest.mark.slow
def test_an_attack_is_felt_by_the_honest_and_told_what_it_did(tmp_path: Path) -> None:
    _, figures, said = bench(tmp_path, "attack", "--kind=pongs,unknown,reads", "--seconds=2")
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


@pytest.mark.slow
def test_an_attacker_who_is_not_closed_is_a_fault(tmp_path: Path) -> None:
    """A real one: the server counts no frames."""
    _, figures, _ = bench(
        tmp_path, "attack", "--kind=pongs", "--seconds=1", "--set=frames_per_s=1000000", "--set=frames_burst=1000000"
    )
    assert figures["wrong_closes"] == 1
    assert "wrong_closes" in {sentence.split()[0] for sentence in figures["over"]}


@pytest.mark.slow
def test_workers_live_through_an_attack(tmp_path: Path) -> None:
    _, figures, said = bench(tmp_path, "attack", "--kind=fragments", "--seconds=2", "--connections=20", "--workers=2")
    assert (figures["workers_died"], figures["wrong_closes"], figures["dropped_n"]) == (0, 0, 0), said
    assert figures["windows"][1]["connections"] == 20


@pytest.mark.slow
def test_a_client_on_a_slow_line_gets_all_on_one_connection(tmp_path: Path) -> None:
    _, figures, said = bench(tmp_path, "slowline", "--mb=1", "--mbit=4")
    assert (figures["missing"], figures["wrong_n"], figures["connections"], figures["lost_connections"]) == (
        0,
        0,
        1,
        0,
    ), said
    assert figures["seconds"] > 1.5, "the line was slow"
    assert 1.0 < figures["mbit_read"] < 4.4


@pytest.mark.slow
def test_what_a_slow_line_does_not_bring_is_missing(tmp_path: Path) -> None:
    """A real fault: the server sends less than was missed, and says `page` instead."""
    _, figures, _ = bench(tmp_path, "slowline", "--mb=1", "--mbit=8", "--set=resync_entries_max=100", "--drain=1")
    assert figures["missing"] == 500
    assert "missing" in {sentence.split()[0] for sentence in figures["over"]}


@pytest.mark.slow
def test_budgets_are_held_by_running_the_scenarios(tmp_path: Path) -> None:
    budgets = tmp_path / "budgets.toml"
    run = '[[run]]\nname = "{}"\nargs = "send --rate 60 --connections 4 --seconds 60"\nquick = "send --rate 60 --connections 4 --seconds 1"\n'
    budgets.write_text(f"{run.format('a')}most = {{ lost = 0 }}\n{run.format('b')}most = {{ p99_ms = 0.001 }}\n")
    command = [sys.executable, "-m", "bench", "budget", "--quick", f"--budgets={budgets}", f"--out={tmp_path}"]
    done = subprocess.run(
        [*command, "--add=--set lanes=2"], cwd=ROOT, capture_output=True, text=True, timeout=RUN_S_MAX, check=False
    )
    assert done.returncode == 1, done.stderr
    rows = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()[1:3]}
    assert (rows["a"] in ("ok", "VOID"), rows["b"] in ("OVER", "VOID")) == (True, True), done.stdout
    assert json.loads((tmp_path / "a.json").read_text())["settings"]["lanes"] == "2"


# ---- the filled database -------------------------------------------------------------------------

FAULTS = (
    "DELETE FROM entries WHERE conv = 3 AND seq = 60",
    "UPDATE conversations SET head = head + 1 WHERE id = 4",
    "UPDATE conversations SET floor = floor - 1 WHERE id = 5",
    "UPDATE conversations SET na = na + 1, nb = nb - 1 WHERE id = 6",
    "UPDATE conversations SET last_ts = last_ts + interval '1 ms' WHERE id = 7",
    "UPDATE entries SET ts = ts - interval '1 min' WHERE conv = 8 AND seq = (SELECT max(seq) FROM entries WHERE conv = 8)",
    "UPDATE cursors SET a_read_n = a_read_n + 1 WHERE conv = 9",
    "UPDATE entries SET ref_ts = ref_ts + interval '1 ms' WHERE conv = 10 AND kind = 1",
    "UPDATE entries e SET cid = (SELECT cid FROM entries WHERE conv = 11 AND seq = 2) WHERE conv = 11 AND seq = 1",
)


def test_a_filled_database_holds_the_schemas_invariants_and_a_fault_in_it_is_found(fresh_db: str) -> None:
    fill.fill(fresh_db, 10_000, seed=1, now=time.time())
    logs = fill.plan(10_000)
    fill.verify(fresh_db, logs, every=1)
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        assert conn.execute("SELECT count(*) FROM entries").fetchone() == (sum(log.rows for log in logs),)
        days = conn.execute("SELECT count(DISTINCT tableoid) FROM entries").fetchone()
        assert days is not None
        assert days[0] >= 30
        assert conn.execute("SELECT nextval(pg_get_serial_sequence('conversations', 'id'))").fetchone() == (
            len(logs) + 1,
        )
        for n, fault in enumerate(FAULTS, 1):
            assert conn.execute(fault).rowcount > 0, fault
            with pytest.raises(TargetError, match=f"^{n} of"):
                fill.verify(fresh_db, logs, every=1)
