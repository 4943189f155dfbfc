"""A client who missed much, behind a slow line such as a phone's: it gets all of it, in order and
once, on one connection.

It has conversations of 500 missed entries of 2 KB each (more of one are not sent unasked), `--mb`
in all, and comes with its cursors through a proxy that carries `--mbit` a second. It answers pings
as it reads them, behind what is on the line already: a node that hands the kernel too much loses
it. Honest users are beside it (`bench.beside`): what they feel, and the node's memory before it
comes and at most while it reads.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any, Final

import psycopg

from bench import beside, old_logs, report
from bench.gang import Gang, soon
from bench.old_logs import Old
from bench.report import say
from bench.target import Target

EXAMPLES = """\
  python -m bench slowline                        21 MB at 2 Mbit/s: some 95 s
  python -m bench slowline --mb 4 --mbit 1        less, on a slower line"""
LIMITS = "default"
ENTRIES: Final = 500  # of a conversation: resync_entries_max
BODY_BYTES: Final = 1_880
ENTRY_BYTES: Final = 2_000  # on the wire
MARGIN: Final = 1.1  # frames' heads and the line's own turns


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mb", type=float, default=21, metavar="MB", help="what it missed, in millions of bytes (default: 21)"
    )
    parser.add_argument(
        "--mbit", type=float, default=2, metavar="R", help="its line carries, in millions of bits a second (default: 2)"
    )
    parser.add_argument(
        "--budget-rss-mib",
        type=float,
        default=16,
        metavar="MIB",
        help="more that the node holds while it reads (default: 16)",
    )
    parser.add_argument(
        "--budget-ping-p99-ms", type=float, default=100, metavar="MS", help="of the honest (default: 100)"
    )


async def run(options: argparse.Namespace) -> int:
    n = max(1, round(options.mb * 1e6 / ENTRIES / ENTRY_BYTES))
    expected_s = n * ENTRIES * ENTRY_BYTES * 8 / (options.mbit * 1e6)
    async with Target(options, admin=True) as target, Gang(target, options.seed) as gang:
        target.need_own("slowline: what a node holds")
        olds = [Old("slow", f"writer{i}", ENTRIES, BODY_BYTES) for i in range(n)]
        logs = await asyncio.to_thread(old_logs.write, target.conninfo, olds, options.seed)
        people = await beside.start(gang)
        client = await gang.add("missed", user="slow", logs=logs, head=ENTRIES, bytes_per_s=options.mbit * 1e6 / 8)
        say(f"measured: {n * ENTRIES} entries come at {options.mbit:g} Mbit/s: some {expected_s:.0f} s")
        progress = asyncio.ensure_future(report.tick(expected_s))
        felt, came = await asyncio.gather(
            beside.feel(target, people, expected_s * MARGIN, soon()),
            client.do("come", epoch=await asyncio.to_thread(_epoch, target)),
        )
        progress.cancel()
        figures = _figures(options, felt, came) | report.context(options, target)
    must_not = ("missing", "wrong_n", "lost_connections", *beside.NEVER)
    most = dict.fromkeys(must_not, 0.0) | {
        "connections": 1.0, "rss_growth_mib": options.budget_rss_mib, "ping_p99_ms": options.budget_ping_p99_ms
    }  # fmt: skip
    return report.finish(options, figures, most)


def _figures(options: argparse.Namespace, felt: dict[str, Any], came: dict[str, Any]) -> dict[str, Any]:
    seconds = came["seconds"]
    return {
        "mb": round(came["bytes"] / 1e6, 1),
        "mbit": options.mbit,
        "seconds": round(seconds, 1),
        "mbit_read": round(came["bytes"] * 8 / 1e6 / max(seconds, 1e-9), 2),
        "missing": came["missing"],
        "wrong_n": sum(came["wrong"].values()),
        "connections": came["connections"],
        "lost_connections": sum(came["dropped"].values()),
        **felt,
        "rss_growth_mib": round(felt["rss_most_mib"] - felt["rss_before_mib"], 1),
    }


def _epoch(target: Target) -> str:
    """Of the log: a client has it from its last welcome."""
    with psycopg.connect(target.conninfo) as conn:
        row = conn.execute("SELECT epoch FROM meta").fetchone()
    assert row is not None
    return str(row[0])
