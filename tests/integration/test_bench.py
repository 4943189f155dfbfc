"""`python -m bench` as a command: it starts and stops a server of its own, and its exit status and JSON say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RUN_S_MAX = 90.0
KEYS = {
    "sent", "acked", "lost", "duplicated", "reordered", "p50_ms", "p95_ms", "p99_ms", "ack_p50_ms", "ack_p95_ms", "ack_p99_ms", "rate", "connections",
    "seconds", "server_cpu_us_per_msg", "postgres_cpu_us_per_msg", "generator_lag_p99_ms", "machine", "versions", "settings",
}  # fmt: skip


def bench(tmp_path: Path, *flags: str) -> tuple[int, dict[str, Any], str]:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "bench", *flags, "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_S_MAX, check=False)
    assert out.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(out.read_text()), done.stdout


def test_send_counts_every_message_and_tells_what_it_cost(tmp_path: Path) -> None:
    status, figures, said = bench(tmp_path, "send", "--rate=300", "--connections=20", "--seconds=1")
    assert figures.keys() >= KEYS
    assert (figures["sent"], figures["acked"], figures["delivered"]) == (300, 300, 300)
    assert (figures["lost"], figures["duplicated"], figures["reordered"], figures["stray"]) == (0, 0, 0, 0)
    assert 0 < figures["ack_p50_ms"] <= figures["ack_p99_ms"]
    assert figures["server_cpu_us_per_msg"] > 0
    assert status == (2 if figures["void"] else 1 if figures["over"] else 0), said


def test_over_budget_is_status_1(tmp_path: Path) -> None:
    status, figures, said = bench(tmp_path, "send", "--rate=100", "--connections=4", "--seconds=1", "--budget-p99-ms=0.001")
    assert any(sentence.startswith("p99_ms") for sentence in figures["over"])
    assert status == (2 if figures["void"] else 1), said


def test_what_the_server_refuses_is_lost(tmp_path: Path) -> None:
    """A real fault: the server's rate limit is on, so all but the first ten of each user are refused."""
    flags = ("--set=rate_messages=10", "--set=rate_per_ms=60000", "--set=rate_penalties_max=64")
    status, figures, said = bench(tmp_path, "send", "--rate=200", "--connections=4", "--seconds=1", *flags)
    assert figures["lost"] == figures["errors"]["rate_limited"] + figures["errors"]["blocked"] > 0, said
    assert figures["p99_ms"] is None
    assert status == (2 if figures["void"] else 1), said


@pytest.mark.parametrize(("flag", "word"), [("--url=http://x/ws", "ws://"), ("--url=ws://127.0.0.1:1/ws", "--keys-file")])
def test_a_wrong_target_is_one_line_and_status_2(flag: str, word: str) -> None:
    done = subprocess.run([sys.executable, "-m", "bench", "send", flag], cwd=ROOT, capture_output=True, text=True, timeout=RUN_S_MAX, check=False)
    assert done.returncode == 2
    assert word in done.stderr
    assert len(done.stderr.splitlines()) == 1
