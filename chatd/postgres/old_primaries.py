"""Of several hosts in the URL, finds old primaries that still take writes. Asked once, at start.

After a failover the old primary may be back, and nothing keeps it from taking writes. A running
node knows its own log (log_state.py). A node that starts knows none, and libpq gives it the first
primary of the URL. So it asks each host. A host is old if another one's epoch names its epoch as
left; where no node has made a new epoch yet, if its timeline is lower. Old hosts are tried last
from then on. Where neither shows which one is old (`chatd epoch --renew` on an old primary), the
order of the URL stays.

A host that does not answer within `ASK_S` is ignored: a start does not wait for a machine that is
gone.
"""

from __future__ import annotations

import asyncio
from typing import Final

import psycopg
import structlog

from chatd.postgres import connection
from chatd.postgres.connection import Opener
from chatd.postgres.faults import Outage
from chatd.postgres.log_state import Sight, tag, tags

log = structlog.get_logger("database")

ASK_S: Final = 3.0


async def ask(opener: Opener) -> None:
    """Have `opener` try old primaries last."""
    hosts = opener.each()
    if len(hosts) == 1:
        return
    seen = await asyncio.gather(*(_look(host) for host in hosts.values()))
    sights = {
        place: sight for place, sight in zip(hosts, seen, strict=True) if sight is not None and sight.actual is not None
    }
    old = [place for place, sight in sights.items() if any(is_older(sight, other) for other in sights.values())]
    for place in old:
        opener.avoid(place)
    if old:
        log.error(
            "database.primaries",
            not_used=[":".join(place) for place in old],
            reason="an old primary is back: stop it, or make it a standby",
        )


def is_older(one: Sight, other: Sight) -> bool:
    """Whether log `one` was left for log `other`."""
    if one.epoch != other.epoch:
        return tag(one.epoch) in tags(other.epoch)
    (system, timeline), (other_system, later) = (str(sight.actual).split("/")[:2] for sight in (one, other))
    return system == other_system and int(timeline, 16) < int(later, 16)


async def _look(host: Opener) -> Sight | None:
    """What a host has; None if it does not answer, is a standby, or has no log."""
    try:
        async with asyncio.timeout(ASK_S):
            conn = await host.open("start", connection.COMMON, ASK_S, compare=False)
            try:
                return await connection.sight(conn)
            finally:
                await connection.close(conn)
    except (Outage, psycopg.Error, OSError, TimeoutError):
        return None
