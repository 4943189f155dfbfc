"""`python -m bench` as a command: it starts and stops servers of its own, and its exit status, JSON
and page say the same. Here are `send`, a bench that ends early, budgets, and the filled database.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from bench import contact_logs, fill
from bench.contacts import Contacts
from bench.target import TargetError
from tests.fix_bench import ROOT, RUN_S_MAX, Bench, command_of, is_nothing_left, start
from tests.until import blocking_until

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


def test_send_counts_every_message_and_tells_what_it_cost(bench: Bench, tmp_path: Path) -> None:
    _, figures, _ = bench("send", "--rate=300", "--connections=20", "--seconds=1")
    assert figures.keys() >= KEYS
    assert (figures["sent"], figures["acked"], figures["delivered"]) == (300, 300, 300)
    assert (figures["lost"], figures["duplicated"], figures["reordered"], figures["stray"]) == (0, 0, 0, 0)
    assert 0 < figures["ack_p50_ms"] <= figures["ack_p99_ms"]
    assert figures["server_cpu_us_per_msg"] > 0
    assert is_nothing_left(tmp_path)


def test_what_the_server_refuses_is_lost(bench: Bench) -> None:
    """A real fault: the server's rate limit is on, so all but the first ten of each user are
    refused.
    """
    flags = ("--set=rate_messages=10", "--set=rate_per_ms=60000", "--set=rate_penalties_max=64")
    _, figures, said = bench("send", "--rate=200", "--connections=4", "--seconds=1", "--drain=2", *flags)
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
    blocking_until(lambda: not any(map(command_of, children)), lambda: f"{children} have ended", RUN_S_MAX)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--devices=3", "--connections=24", "--burst=10"],
        ["--ack=all", "--read=0.3", "--hot=0.5"],
        ["--generators=2", "--budget-p99-ms=0.001"],
    ],
)
def test_send_in_its_varieties(bench: Bench, flags: list[str]) -> None:
    common = ("--rate=200", "--connections=20", "--seconds=1", "--body-mix=0.9:50-200,0.1:1500-2000")
    status, figures, said = bench("send", *common, *flags)
    assert (figures["sent"], figures["delivered"], figures["lost"], figures["stray"]) == (200, 200, 0, 0), said
    if "--ack=all" in flags:
        assert figures["requests"]["ack"] >= 200
        assert figures["requests"]["receipt"] > 0
        assert 0.2 < figures["requests"]["read"] / figures["requests"]["ack"] < 0.4
        assert figures["unanswered"] == 0
    if "--budget-p99-ms=0.001" in flags:
        assert any(sentence.startswith("p99_ms") for sentence in figures["over"])
        assert status == 1


@pytest.mark.slow
def test_budgets_are_held_by_running_the_scenarios(tmp_path: Path) -> None:
    budgets = tmp_path / "budgets.toml"
    run = (
        '[[run]]\nname = "{}"\nargs = "send --rate 60 --connections 4 --seconds 60"\nquick = "send --rate 60'
        ' --connections 4 --seconds 1"\n'
    )
    budgets.write_text(f"{run.format('a')}most = {{ lost = 0 }}\n{run.format('b')}most = {{ p99_ms = 0.001 }}\n")
    command = [sys.executable, "-m", "bench", "budget", "--quick", f"--budgets={budgets}", f"--out={tmp_path}"]
    done = subprocess.run(
        [*command, "--add=--set lanes=2"], cwd=ROOT, capture_output=True, text=True, timeout=RUN_S_MAX, check=False
    )
    assert done.returncode == 1, done.stderr
    rows = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()[1:3]}
    assert (rows["a"] in ("ok", "VOID"), rows["b"] in ("OVER", "VOID")) == (True, True), done.stdout
    assert json.loads((tmp_path / "a.json").read_text())["settings"]["lanes"] == "2"


# ---- filled databases ----------------------------------------------------------------------------

FAULTS = (
    "DELETE FROM entries WHERE conv = 3 AND seq = 60",
    "UPDATE conversations SET head = head + 1 WHERE id = 4",
    "UPDATE conversations SET floor = floor - 1 WHERE id = 5",
    "UPDATE conversations SET na = na + 1, nb = nb - 1 WHERE id = 6",
    "UPDATE conversations SET last_ts = last_ts + interval '1 ms' WHERE id = 7",
    "UPDATE entries SET ts = ts - interval '1 min' FROM conversations WHERE id = conv AND conv = 8 AND seq = head",
    "UPDATE cursors SET a_read_n = a_read_n + 1 WHERE conv = 9",
    "UPDATE entries SET ref_ts = ref_ts + interval '1 ms' WHERE conv = 10 AND kind = 1",
    "UPDATE entries e SET cid = (SELECT cid FROM entries WHERE conv = 11 AND seq = 2) WHERE conv = 11 AND seq = 1",
)


def test_a_filled_database_holds_the_schemas_invariants_and_a_fault_in_it_is_found(fresh_db: str) -> None:
    fill.fill(fresh_db, 10_000, seed=1, now=time.time())
    logs = fill.plan(10_000)
    fill.verify(fresh_db, len(logs), every=1)
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
                fill.verify(fresh_db, len(logs), every=1)


@pytest.mark.parametrize("contacts", [Contacts(30, 7), Contacts(3, 8)])
def test_the_logs_of_contacts_hold_the_invariants_and_both_sides_have_written(
    fresh_db: str, contacts: Contacts
) -> None:
    contact_logs.write(fresh_db, contacts, 61, time.time())
    fill.verify(fresh_db, contacts.conversations, every=1)
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        facts = "SELECT count(*), min(head), max(head), min(least(na, nb)), count(DISTINCT (a, b)) FROM conversations"
        assert conn.execute(facts).fetchone() == (contacts.conversations, 61, 61, 30, contacts.conversations)
        each = "SELECT count(*) FROM conversations WHERE %(u)s IN (a, b)"
        assert {conn.execute(each, {"u": contacts.names[u]}).fetchone() for u in range(contacts.users)} == {
            (contacts.each,)
        }
        # One after the other in time, as people write
        mixed = "SELECT count(DISTINCT conv) FROM (SELECT conv FROM entries ORDER BY ts LIMIT %s) e"
        assert conn.execute(mixed, (contacts.conversations,)).fetchone() == (contacts.conversations,)
        assert conn.execute("DELETE FROM entries WHERE conv = 9 AND seq = 3").rowcount == 1
        with pytest.raises(TargetError, match=r"^1 of"):
            fill.verify(fresh_db, contacts.conversations, every=1)
