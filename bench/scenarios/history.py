"""Pages of history at several depths of a large database, and lists of a user with 1,000
conversations, while others write.

The database is filled by COPY on the first run (10M messages over 30 days take some minutes) and
kept for the next ones in `--fill-dir`. Readers ask for pages of 50 in an open loop: each depth in
turns (0 is the newest page of a log, 1 the oldest), in logs of three sizes. Each page is checked:
an unbroken run of seqs, as many as there are. The user `hub` pages through the list of its
conversations. Messages are written meanwhile by users of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from pathlib import Path
from typing import Any

from bench import fill, latency, report
from bench.gang import Gang, soon
from bench.report import say
from bench.sending import NONE, Senders, sample, shares, windows_of
from bench.target import ROOT, Target, TargetError

EXAMPLES = """\
  python -m bench history                                    10M messages; filled on the first run
  python -m bench history --rows 100000 --seconds 5          a quick look
  python -m bench history --depths 1 --pages 500 --write 0   the oldest pages alone, nothing written"""
LOGS_MAX = 200  # of a size, that are read


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows",
        type=fill.rows,
        default=10_000_000,
        metavar="N",
        help="messages in the database, such as 500k (default: 10M)",
    )
    parser.add_argument(
        "--fill-dir",
        type=Path,
        metavar="DIR",
        help="where the filled database is kept (default: bench/out/history-ROWS)",
    )
    parser.add_argument("--pages", type=float, default=200, metavar="R", help="pages a second (default: 200)")
    parser.add_argument("--lists", type=float, default=50, metavar="R", help="pages of the list a second (default: 50)")
    parser.add_argument(
        "--depths", default="0,0.1,0.5,0.9,1", metavar="D,...", help="0 newest ... 1 oldest (default: 0,0.1,0.5,0.9,1)"
    )
    parser.add_argument(
        "--write",
        type=float,
        default=1_000,
        metavar="R",
        help="messages a second that are written meanwhile (default: 1000)",
    )
    parser.add_argument(
        "--write-connections", type=int, default=200, metavar="N", help="of those who write (default: 200)"
    )
    parser.add_argument("--seconds", type=float, default=30, metavar="S", help="what is measured (default: 30)")
    parser.add_argument("--budget-p95-ms", type=float, default=10, metavar="MS", help="of pages (default: 10)")
    parser.add_argument("--budget-p99-ms", type=float, default=25, metavar="MS", help="of pages (default: 25)")
    parser.add_argument("--budget-lists-p95-ms", type=float, default=15, metavar="MS", help="of lists (default: 15)")


async def run(options: argparse.Namespace) -> int:
    depths = [float(d) for d in options.depths.split(",")]
    if not all(0 <= d <= 1 for d in depths):
        raise TargetError("--depths: each is from 0 (newest) to 1 (oldest)")
    folder = (options.fill_dir or ROOT / "bench" / "out" / f"history-{options.rows}").absolute()
    logs, windows = fill.plan(options.rows), windows_of(options.seconds)
    is_filled = fill.is_filled(folder, options.rows, time.time())
    if not is_filled:
        fill.mark(folder, options.rows, time.time(), done=False)
    async with (
        Target(options, data=folder, settings={"retention_days": fill.RETENTION_DAYS}) as target,
        Gang(target, options.seed) as gang,
    ):
        target.need_own("history: what a filled database holds")
        if not is_filled:
            say(f"filling {folder} with {options.rows:,} messages")
            await asyncio.to_thread(fill.fill, target.conninfo, options.rows, options.seed, time.time())
        await asyncio.to_thread(fill.verify, target.conninfo, len(logs), max(1, len(logs) // 100))
        if not is_filled:
            fill.mark(folder, options.rows, time.time(), done=True)
        readers = await gang.add("reads", "r", **_readers(logs, depths, options.seed))
        await readers.do("connect")
        writers = None
        if options.write:
            writers = await Senders.start(target, gang, shares(options.write_connections, options.write, 1), tag="w")
            await writers.warm_up()
            await writers.prepare(options.seconds)
        say(f"measured: {options.pages:g} pages and {options.lists:g} lists a second for {options.seconds:g} s")
        # Warm
        await readers.do("fire", pages=options.pages, lists=options.lists, seconds=min(2.0, options.seconds), at=soon())
        await readers.do("forget")
        at = soon()
        sampling = asyncio.ensure_future(sample(target, at, options.seconds, windows))
        progress = asyncio.ensure_future(report.tick(options.seconds))
        reading = readers.do("fire", pages=options.pages, lists=options.lists, seconds=options.seconds, at=at)
        await asyncio.gather(reading, *([writers.fire(at)] if writers else []))
        progress.cancel()
        cpu, end, wall_s = await sampling, target.cpu(), time.perf_counter() - at
        target.check()
        facts = await readers.do("facts", windows=windows)
        figures, parts = _figures(options, facts)
        curves = _curves(facts)
        if writers:
            writers.facts = [await one.do("facts", windows=windows) for one in writers.generators]
            writers.cpu, writers.wall_s = [cpu[0], end], wall_s
            figures |= {k: v for k, v in writers.figures("send_").items() if "cpu" not in k and k != "send_cores"}
            parts = [
                part | {f"send_{k}": v for k, v in w.items() if k.startswith("p")}
                for part, w in zip(parts, writers.windows(), strict=True)
            ]
        figures |= {
            "cores": report.costs(end.since(cpu[0]), wall_s, 1, target.own)["cores"],
            "windows": parts,
            "curves": curves,
        }
        figures |= report.context(options, target)
    most = {"wrong": 0.0, "unanswered": 0.0, "errors_n": 0.0}
    most |= {"pages_p95_ms": options.budget_p95_ms, "pages_p99_ms": options.budget_p99_ms} if options.pages else {}
    most |= {"lists_p95_ms": options.budget_lists_p95_ms} if options.lists else {}
    return report.finish(options, figures, most | ({f"send_{name}": 0.0 for name in NONE} if writers else {}))


def _readers(logs: list[fill.Log], depths: list[float], seed: int) -> dict[str, Any]:
    """Options of the load: some logs of each size, and who reads them."""
    rng = random.Random(seed)
    chosen = []
    for size in ("deep", "middle", "small"):
        several = [log for log in logs if log.size == size]
        chosen += rng.sample(several, min(LOGS_MAX, len(several)))
    users = sorted({log.b if log.a == fill.HUB else log.a for log in chosen} | {fill.HUB})
    place = {user: n for n, user in enumerate(users)}
    return {
        "users": users,
        "depths": depths,
        "hub": place[fill.HUB],
        "hub_conversations": sum(fill.HUB in (log.a, log.b) for log in logs),
        "logs": [
            [
                str(log.id),
                place[log.a if log.a in place and log.a != fill.HUB else log.b],
                log.base + 1,
                log.head,
                log.size,
            ]
            for log in chosen
        ],
    }


def _figures(options: argparse.Namespace, facts: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    by_kind = {kind: latency.merged([text]) for kind, text in facts["by_kind"].items()}
    pages, lists = latency.merged(facts["pages"]), latency.merged(facts["lists"])
    figures = {
        "rows": options.rows,
        "pages_per_s": options.pages,
        "lists_per_s": options.lists,
        "write_per_s": options.write,
        "seconds": options.seconds,
        **{name: facts[name] for name in ("asked", "unanswered", "wrong", "errors", "dropped")},
        "errors_n": sum(facts["errors"].values()),
        **pages.figures("pages_"),
        **lists.figures("lists_"),
        "generator_lag_p99_ms": latency.merged([facts["lag"]]).at(99),
        "by_depth_and_size_p95_ms": {kind: found.at(95) for kind, found in by_kind.items()},
        "by_depth_and_size_p99_ms": {kind: found.at(99) for kind, found in by_kind.items()},
    }
    parts = []
    for page, list_ in zip(facts["pages"], facts["lists"], strict=True):
        one, other = latency.merged([page]), latency.merged([list_])
        parts.append(
            {
                **{f"pages_p{p}_ms": one.at(p) for p in (50, 95, 99)},
                **{f"lists_p{p}_ms": other.at(p) for p in (50, 95, 99)},
            }
        )
    return figures, parts


def _curves(facts: dict[str, Any]) -> dict[str, list[list[float]]]:
    """A line for each depth, over all sizes, and one for lists."""
    lines: dict[str, latency.Latencies] = {}
    for kind, text in facts["by_kind"].items():
        name = kind if kind == "list" else f"depth {kind.split()[0]}"
        lines.setdefault(name, latency.Latencies()).merge(latency.merged([text]))
    return {name: line.curve() for name, line in sorted(lines.items())}
