"""A reconnect storm:

N clients with unread entries all come back at once; until each has what it missed, once, while
others go on sending.

Each client has a conversation with one of N/20 writers. All go; the writers send `--unread`
messages to each; then all come back with their cursors. A client is back when its last missed entry
is there: `back_*` counts from the start of the storm, waiting for a turn to dial included. Others,
in a process of their own, send at a fixed rate all the while; their latencies during the storms are
`send_*`. Storms are repeated for `compare`, each a window.

`--fresh-log` is a new installation: the node's sessions plan their statements on empty tables, then
messages of others fill the log, and nobody analyses it (`--analyse`: somebody does, which is what
to compare with). `log_buffers_per_client` is what of the log's tables and indexes was read for each
who came back; with `--beside 0` it is theirs alone.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from functools import partial
from typing import Any

import psycopg

from bench import contact_logs, fill, latency, layout, report
from bench.gang import Gang, Generator, soon
from bench.loads.messages import OPENING_RATE
from bench.report import say
from bench.sending import Senders, shares
from bench.target import Target

EXAMPLES = """\
  python -m bench resync                                    10,000 clients, 5 unread each, once
  python -m bench resync --clients 2000 --storms 3          smaller, three times
  python -m bench resync --at-once 10000                    all dial in the same instant
  python -m bench resync --nodes 4                          over four nodes, each client back at the one it left
  python -m bench resync --contacts 200 --marks             each has 200 other conversations, in which nothing changed
  python -m bench resync --clients 1000 --beside 0 --fresh-log 1M [--analyse]     a new installation; analysed"""
CLIENTS_PER_WRITER = 20
WRITING_RATE = 4_000.0  # of what the clients will have missed, messages a second
PLANNERS = 64  # clients who come back to an empty log, all at once: every connection of the node's pool plans a resync
FRESH_ID = 1_000_001  # the first conversation of a fresh log
FLUSH_S = 11.0  # by then an idle session of PostgreSQL has told what it read


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clients", type=int, default=10_000, metavar="N", help="clients who come back (default: 10000)"
    )
    parser.add_argument("--unread", type=int, default=5, metavar="M", help="entries that each has missed (default: 5)")
    parser.add_argument(
        "--storms", type=int, default=1, metavar="K", help="times that all go and come back (default: 1)"
    )
    parser.add_argument(
        "--at-once", type=int, default=500, metavar="N", help="dialling at the same time (default: 500)"
    )
    parser.add_argument(
        "--beside",
        type=float,
        default=500,
        metavar="R",
        help="messages a second that others send meanwhile (default: 500)",
    )
    parser.add_argument(
        "--beside-connections", type=int, default=200, metavar="N", help="of those others (default: 200)"
    )
    parser.add_argument(
        "--storm-s",
        type=float,
        default=25,
        metavar="S",
        help="how long they send from the start of a storm (default: 25)",
    )
    parser.add_argument(
        "--fresh-log",
        type=fill.rows,
        default=0,
        metavar="N",
        help="messages of others, put into the log once the node has planned",
    )
    parser.add_argument("--analyse", action="store_true", help="VACUUM ANALYZE the fresh log")
    parser.add_argument(
        "--flush-s",
        type=float,
        default=FLUSH_S,
        metavar="S",
        help="waited before what was read is counted (default: 11)",
    )
    parser.add_argument("--marks", action="store_true", help="they come back with the mark of their last welcome, too")
    layout.flags(parser)
    contact_logs.flags(parser)
    parser.add_argument("--budget-s", type=float, default=20, metavar="S", help="until all are back (default: 20)")
    parser.add_argument(
        "--budget-send-p99-ms", type=float, default=500, metavar="MS", help="of the others' deliveries (default: 500)"
    )


async def run(options: argparse.Namespace) -> int:
    writers = max(1, options.clients // CLIENTS_PER_WRITER)
    contacts = contact_logs.of(options, options.clients)
    async with (
        contact_logs.target(options, contacts, nodes=options.nodes) as target,
        Gang(target, options.seed) as gang,
    ):
        if options.fresh_log:
            await _new_installation(options, target, gang)
        crowd = await gang.add(
            "returns",
            "c",
            clients=options.clients,
            writers=writers,
            marks=options.marks,
            has_contacts=contacts is not None,
        )
        say(f"{options.clients} clients and {writers} writers come; a message each way between them")
        await crowd.do("connect")
        await crowd.do("open_all", rate=OPENING_RATE)
        others = None
        if options.beside:
            others = await Senders.start(target, gang, shares(options.beside_connections, options.beside, 1), tag="o")
            await others.warm_up(1.0)
        windows, back, hello, send, lag = (
            [],
            latency.Latencies(),
            latency.Latencies(),
            latency.Latencies(),
            latency.Latencies(),
        )
        late = latency.Latencies()
        missing, judged = 0, dict.fromkeys(("lost", "duplicated", "reordered", "stray"), 0)
        for storm in range(options.storms):
            await crowd.do("depart")
            say(f"storm {storm + 1}: all are gone; {options.clients * options.unread} messages for them")
            await crowd.do("write", unread=options.unread, rate=WRITING_RATE)
            before = await _log_buffers(target, options.flush_s)
            came, cpu, wall_s = await _storm(options, target, crowd, others)
            buffers = (await _log_buffers(target, options.flush_s) - before) / options.clients if target.own else None
            missing += came["missing"]
            delivery = others.merged("delivery") if others else latency.Latencies()
            for total, one in (
                (back, latency.merged([came["back"]])),
                (hello, latency.merged([came["hello"]])),
                (send, delivery),
            ):
                total.merge(one)
            if others:
                late.merge(others.merged("lag"))
            lag.merge(latency.merged([came["lag"]]))
            windows.append(
                {
                    "seconds_to_all": round(came["seconds"], 3),
                    **latency.merged([came["back"]]).figures("back_"),
                    **delivery.figures("send_"),
                    "log_buffers_per_client": buffers,
                    **report.each(cpu, options.clients * options.unread, target.own),
                }
            )
        facts = await crowd.do("facts")
        for name in judged:
            judged[name] = facts[name] + (others.total(name) if others else 0)
        figures: dict[str, Any] = {
            "clients": options.clients,
            "unread": options.unread,
            "storms": options.storms,
            "nodes": options.nodes,
            **contact_logs.figures(contacts),
            "seconds_to_all": max(w["seconds_to_all"] for w in windows),
            "missing": missing,
            **judged,
            "errors": facts["errors"],
            "dropped": facts["dropped"],
            **back.figures("back_"),
            **hello.figures("hello_"),
            **send.figures("send_"),
            "generator_lag_p99_ms": late.at(99) if others else 0.0,
            "client_loop_lag_p99_ms": lag.at(99),
            "fresh_log": options.fresh_log,
            "analysed": options.analyse,
            "log_buffers_per_client": windows[-1]["log_buffers_per_client"],
            "cores": report.costs(cpu, wall_s, options.clients, target.own)["cores"],
            "windows": windows,
            "curves": {"back": back.curve(), "hello": hello.curve(), "send": send.curve()},
            **report.context(options, target),
        }
    most = {"missing": 0.0, **dict.fromkeys(judged, 0.0), "seconds_to_all": options.budget_s}
    return report.finish(
        options, figures, most | ({"send_p99_ms": options.budget_send_p99_ms} if options.beside else {})
    )


async def _new_installation(options: argparse.Namespace, target: Target, gang: Gang) -> None:
    """The node's sessions plan a resync on empty tables; then others' messages fill them.

    No autovacuum: it would analyse when it comes to it.
    """
    target.need_own("--fresh-log: what a node has planned")
    now = time.time()
    with psycopg.connect(target.conninfo, autocommit=True) as conn:
        conn.execute("ALTER SYSTEM SET autovacuum = off")
        conn.execute("SELECT pg_reload_conf()")
        fill.make_partitions(conn, now)  # before: a new partition makes PostgreSQL plan again
    few = await gang.add("returns", "p", clients=PLANNERS, writers=1)
    await few.do("connect")
    await few.do("open_all", rate=OPENING_RATE)
    await few.do("depart")
    await few.do("write", unread=1, rate=WRITING_RATE)
    came = await few.do("come_back", at_once=PLANNERS, at=soon())
    await few.do("leave")
    say(
        f"{PLANNERS} came back to a log of {3 * PLANNERS} messages, {came['missing']} missing; now"
        f" {options.fresh_log:,} messages of others"
    )
    filling = partial(
        fill.fill, target.conninfo, options.fresh_log, options.seed, now, first_id=FRESH_ID, analyse=options.analyse
    )
    await asyncio.to_thread(filling)


async def _log_buffers(target: Target, flush_s: float) -> int:
    """Reads of the log's tables and indexes so far, once the sessions have told them."""
    if not target.own:
        return 0
    await asyncio.sleep(flush_s)
    with psycopg.connect(target.conninfo, autocommit=True) as conn:
        row = conn.execute(
            "SELECT sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read)::bigint FROM"
            " pg_statio_user_tables WHERE relname ~ '^entries_'"
        ).fetchone()
    assert row is not None
    return int(row[0])


async def _storm(
    options: argparse.Namespace, target: Target, crowd: Generator, others: Senders | None
) -> tuple[dict[str, Any], Any, float]:
    """All come back while the others send; gives what came, and what it cost."""
    if others:
        await others.prepare(options.storm_s)
    at, cpu = soon(), target.cpu()
    started = time.perf_counter()
    sending = asyncio.ensure_future(others.fire(at)) if others else None
    came: dict[str, Any] = await crowd.do("come_back", at_once=options.at_once, at=at)
    used, wall_s = target.cpu().since(cpu), time.perf_counter() - started
    say(f"  back in {came['seconds']:.2f} s, {came['missing']} entries missing")
    target.check()
    if others and sending:
        await sending
        target.check()
        others.facts = [await one.do("facts") for one in others.generators]
    return came, used, wall_s
