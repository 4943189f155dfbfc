"""chatd beside other chat servers, by the shared comparison (`../shared/peers`), in turns in one
run: the ratio of the highest rates.

That program has a generator in C, a PostgreSQL of its own (from PATH) that all peers share, and
drivers for each server; `bench/peer_driver.py` has `chatd`, and `chatd-2` of two nodes. Figures:
per peer the highest rate that held (median over the repetitions), CPU a message there, and chatd's
rate divided by each other's. With several numbers of connections also chatd's rate at each as a
part of that at the first. Needs that folder, gcc, PostgreSQL, and Node for `ws-batch`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench import procs, report
from bench.report import say
from bench.target import ROOT, TargetError

EXAMPLES = """\
  python -m bench peers                                                 chatd and ws-batch
  python -m bench peers --peers chatd,floor-own,ws-batch --reps 3
  python -m bench peers --peers chatd,chatd-2,ws-batch                 two nodes on one port with a Redis, too
  python -m bench peers --conns 200,1000 --rates 16000,24000,32000"""
NOT_HERE: Final = 3  # see bench.budget
TOOLS: Final = {"ws-batch": ("node", "npm")}


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", default="chatd,ws-batch", metavar="P,...", help="(default: chatd,ws-batch)")
    parser.add_argument(
        "--rates", default="8000,16000,20000,24000,28000,32000", metavar="R,...", help="offered, rising; then bisected"
    )
    parser.add_argument(
        "--conns",
        default="200",
        metavar="N,...",
        help="connections; with several, the ratio to the first too (default: 200)",
    )
    parser.add_argument("--reps", type=int, default=3, metavar="N", help="repetitions, in turns (default: 3)")
    parser.add_argument(
        "--peers-dir",
        type=Path,
        default=ROOT.parent / "shared" / "peers",
        metavar="DIR",
        help="(default: ../shared/peers)",
    )
    parser.add_argument(
        "--budget-ratio",
        type=float,
        default=0.7,
        metavar="X",
        help="of chatd's highest rate to each other's (default: 0.7)",
    )


async def run(options: argparse.Namespace) -> int:
    peers = options.peers.split(",")
    if options.url is not None or peers[0] != "chatd" or len(peers) < 2:
        raise TargetError("peers: --peers begins with chatd and names another; there is no --url")
    program = options.peers_dir / "run.py"
    tools = ["gcc", *(tool for peer in peers for tool in TOOLS.get(peer, ()))]
    missing = [str(program)] * (not program.exists()) + [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        print(f"bench: peers cannot run here: no {', '.join(missing)}", file=sys.stderr)
        return NOT_HERE
    with tempfile.TemporaryDirectory(prefix="chatd-peers-") as folder:
        file = Path(folder) / "out.json"
        command = [
            sys.executable,
            str(program),
            "--driver",
            str(ROOT / "bench" / "peer_driver.py"),
            "--peers",
            options.peers,
            "--rates",
            options.rates,
            "--conns",
            options.conns,
            "--reps",
            str(options.reps),
            "--phases",
            "load",
            "--json",
            str(file),
        ]
        say(" ".join(command[2:]))
        process = await asyncio.create_subprocess_exec(*command, stdout=sys.stderr)
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
            raise
        if status or not file.exists():
            raise TargetError(f"{program} ended with status {status}; see above")
        out = json.loads(file.read_text())
    figures = figures_of(out, peers, [int(n) for n in options.conns.split(",")]) | {
        "scenario": options.scenario,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": procs.machine(),
        "versions": out["env"],
        "settings": {},
        "options": {"peers": options.peers, "rates": options.rates, "conns": options.conns, "reps": str(options.reps)},
    }
    return report.finish(
        options, figures, {}, {name: options.budget_ratio for name in figures if name.startswith("chatd_to_")}
    )


def figures_of(out: dict[str, Any], peers: list[str], conns: list[int]) -> dict[str, Any]:
    """From the comparison's own file: for the first number of connections, and for each other N the
    same with `_at_N`, beside chatd's highest rate there as a part of that at the first,
    `chatd_N_to_FIRST`.
    """
    first, *others = conns
    figures = {"windows": [], **_at(first, peers, out)}
    for n in others:
        there = _at(n, peers, out)
        figures |= {f"{name}_at_{n}": value for name, value in there.items()}
        figures[f"chatd_{n}_to_{first}"] = _ratio(there["chatd_highest_rate"], figures["chatd_highest_rate"])
    return figures


def _at(conns: int, peers: list[str], out: dict[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for peer in peers:
        mine = [w for w in out["windows"] if w["peer"] == peer and w["conns"] == conns]
        reps = {w["rep"] for w in mine}
        most = [max((w["rate"] for w in mine if w["rep"] == rep and w["ok"]), default=0.0) for rep in reps]
        figures[f"{peer}_highest_rate"] = statistics.median(most) if most else 0.0
        held = [w for w in mine if w["ok"]]
        if held:
            top = max(held, key=lambda w: w["rate"])
            for part, key in (("server", "server_ms"), ("postgres", "pg_ms")):
                figures[f"{peer}_{part}_cpu_us_per_msg"] = round(top[key] * 1000, 1)
            figures[f"{peer}_generator_lag_p99_ms"] = statistics.median(w["lag"]["p99"] for w in held)
    for peer in peers[1:]:
        figures[f"chatd_to_{peer.replace('-', '_')}"] = _ratio(
            figures["chatd_highest_rate"], figures[f"{peer}_highest_rate"]
        )
    return figures


def _ratio(of: float, to: float) -> float | None:
    return round(of / to, 3) if to else None
