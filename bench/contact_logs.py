"""A database in which users have contacts: `--contacts K --log N`.

Each of its conversations has equally many messages, of both sides in turns (so it is open), over 30
days and in the order of time, all conversations mixed, as if all people had written all the while.
PostgreSQL makes the rows itself, over two connections; the schema's invariants hold as in `fill`,
whose mark the folder has. It is kept and used again, with what runs have written since.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final

import psycopg

from bench import fill
from bench.contacts import Contacts
from bench.fill import DAY_S, DAYS
from bench.report import Progress, say
from bench.target import ROOT, Target, TargetError

FILLERS: Final = 2  # connections that fill at the same time
OPEN: Final = 2  # messages of a conversation, one of each side: fewer would open nothing
BODY_BYTES: Final = (100, 200)  # as of messages that are sent
COPY_LINES: Final = 10_000
VERIFIED: Final = 200  # conversations that are read back

# In the order of their phases: where between two others a conversation's messages lie in time (see `fill.Log`).
PHASED: Final = """
CREATE UNLOGGED TABLE bench_phased AS
    SELECT id, a, b, (id * 0.618034::float8) - floor(id * 0.618034::float8) AS phase FROM bench_pairs ORDER BY phase
"""
CONVERSATIONS: Final = """
INSERT INTO conversations (id, a, b, head, floor, na, nb, last_ts) OVERRIDING SYSTEM VALUE
    SELECT id, a, b, %(n)s::integer, 1, (%(n)s::integer + 1) / 2, %(n)s::integer / 2,
        to_timestamp(%(start)s + (%(n)s - 1 + phase) * %(step)s)
    FROM bench_phased ORDER BY id
"""
# Message number n, from 1, of each conversation: in the order of time, as they stand in `bench_phased`.
MESSAGES: Final = """
INSERT INTO entries (conv, seq, ts, cid, na, nb, side, kind, body)
    SELECT id, %(n)s::integer, to_timestamp(%(start)s + (%(n)s - 1 + phase) * %(step)s), gen_random_uuid(),
        (%(n)s::integer + 1) / 2, %(n)s::integer / 2, (%(n)s::integer + 1) %% 2, 0,
        repeat('x', %(least)s + ((id * 7 + %(n)s) %% %(span)s)::integer)
    FROM bench_phased
"""
CURSORS: Final = """
INSERT INTO cursors (conv, a_delivered, a_read, a_read_n, b_delivered, b_read, b_read_n, xid)
    SELECT id, head, head, nb, head, head, na, pg_current_xact_id() FROM conversations
"""


def flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("contacts")
    group.add_argument(
        "--contacts",
        type=int,
        default=0,
        metavar="K",
        help="each user has K others at random, with a conversation each, instead of one peer (default: 0, pairs)",
    )
    group.add_argument(
        "--log",
        type=fill.rows,
        default=0,
        metavar="N",
        help="messages that these conversations have together, such as 10M (default: 2 in each)",
    )
    group.add_argument(
        "--contacts-dir",
        type=Path,
        metavar="DIR",
        help="where the database with them is kept (default: bench/out/contacts-USERSxK-N)",
    )


def of(options: argparse.Namespace, users: int, *, writing: bool = False) -> Contacts | None:
    """What `--contacts` asks for; None: pairs. `writing`: they are to get what is written to them.

    Raises TargetError.
    """
    if not options.contacts:
        if options.log or options.contacts_dir:
            raise TargetError("--log and --contacts-dir are for --contacts")
        return None
    if options.url is not None:
        raise TargetError("--contacts: fills a database of our own; leave --url out")
    try:
        contacts = Contacts(users, options.contacts)
    except ValueError as e:
        raise TargetError(f"--{e}") from None
    if writing and contacts.strangers:
        raise TargetError(f"--contacts: {users} users have no {contacts.each} others who come; give more --connections")
    if writing and options.generators > 1:
        raise TargetError("--contacts: each user may write to any other: --generators is 1")
    return contacts


def figures(contacts: Contacts | None) -> dict[str, Any]:
    return {} if contacts is None else {"contacts": contacts.each, "conversations": contacts.conversations}


@asynccontextmanager
async def target(options: argparse.Namespace, contacts: Contacts | None, **target: Any) -> AsyncIterator[Target]:
    """A Target whose database has these contacts; a fresh one where there are none."""
    if contacts is None:
        async with Target(options, **target) as started:
            yield started
        return
    messages = max(OPEN, options.log // contacts.conversations)
    log = messages * contacts.conversations
    name = f"contacts-{contacts.users}x{contacts.each}-{log}"
    folder = (options.contacts_dir or ROOT / "bench" / "out" / name).absolute()
    is_filled = fill.is_filled(folder, log, time.time(), name)
    if not is_filled:
        fill.mark(folder, log, time.time(), done=False, what=name)
    settings = {"retention_days": fill.RETENTION_DAYS, **target.pop("settings", {})}
    async with Target(options, data=folder, settings=settings, **target) as started:
        if not is_filled:
            say(f"filling {folder}: {contacts.conversations:,} conversations of {messages} messages")
            await asyncio.to_thread(write, started.conninfo, contacts, messages, time.time())
            every = max(1, contacts.conversations // VERIFIED)
            await asyncio.to_thread(fill.verify, started.conninfo, contacts.conversations, every)
            fill.mark(folder, log, time.time(), done=True, what=name)
        yield started


def write(conninfo: str, contacts: Contacts, messages: int, now: float) -> None:
    """So many messages in each conversation. The schema is there, and no conversation."""
    values = {"start": now - DAYS * DAY_S, "step": DAYS * DAY_S / messages}
    with psycopg.connect(conninfo, autocommit=True, application_name="chatd bench") as conn:
        fill.make_partitions(conn, now)
        with conn.transaction():
            conn.execute("SET LOCAL synchronous_commit = off")
            conn.execute("INSERT INTO users (id, seen_ms) SELECT unnest(%s::text[]), 0", (contacts.names,))
            _copy_pairs(conn, contacts)
            conn.execute(PHASED)
            conn.execute(CONVERSATIONS, values | {"n": messages})
            conn.execute("SELECT setval(pg_get_serial_sequence('conversations', 'id'), %s)", (contacts.conversations,))
            conn.execute(CURSORS)
        progress, done = Progress("filling", messages * contacts.conversations), 0

        def fill_part(part: int) -> None:
            nonlocal done
            for n in _messages(conninfo, range(messages * part // FILLERS, messages * (part + 1) // FILLERS), values):
                done += n
                progress.at(done)

        with ThreadPoolExecutor(FILLERS) as fillers:
            list(fillers.map(fill_part, range(FILLERS)))
        conn.execute("DROP TABLE bench_pairs, bench_phased")
        say("vacuum, analyze, checkpoint")
        conn.execute("VACUUM (ANALYZE)")
        conn.execute("CHECKPOINT")


def _copy_pairs(conn: psycopg.Connection[Any], contacts: Contacts) -> None:
    """The two of each conversation, which is numbered from 1."""
    names, owner = contacts.names, contacts.owner
    pairs = (sorted((names[owner[2 * c]], names[owner[2 * c + 1]])) for c in range(contacts.conversations))
    lines = (f"{id}\t{a}\t{b}\n" for id, (a, b) in enumerate(pairs, 1))
    conn.execute("CREATE UNLOGGED TABLE bench_pairs (id bigint, a text, b text)")
    with conn.cursor().copy("COPY bench_pairs FROM STDIN") as copy:
        while some := "".join(islice(lines, COPY_LINES)):
            copy.write(some)


def _messages(conninfo: str, places: range, values: dict[str, float]) -> Iterator[int]:
    """The messages at these places of each conversation, from 0; gives the rows of each place."""
    low, high = BODY_BYTES
    with psycopg.connect(conninfo, autocommit=True, application_name="chatd bench") as conn:
        conn.execute("SET synchronous_commit = off")
        conn.execute("SET synchronize_seqscans = off")  # from the table's beginning, in its order
        conn.execute("SET max_parallel_workers_per_gather = 0")
        for place in places:
            yield conn.execute(MESSAGES, values | {"n": place + 1, "least": low, "span": high - low + 1}).rowcount
