"""Which of the servers that `database_url` names take writes, for `chatd doctor` and `chatd epoch`.

A node keeps off an old primary that is back by the epochs before its own (old_primaries.py,
log_state.py). A tool knows no epoch: where two servers take writes it must report that, and not use
the first.
"""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

CONNECT_S: Final = 3
_DEFAULT_PORT: Final = "5432"


def each(conninfo: str) -> dict[str, str]:
    """host:port -> the conninfo of that server alone, in libpq's order."""
    own = conninfo_to_dict(conninfo)
    lists = {key: str(own[key]).split(",") for key in ("host", "hostaddr", "port") if own.get(key) is not None}
    count = max((len(lists[key]) for key in ("host", "hostaddr") if key in lists), default=1)
    found = {}
    for n in range(count):
        # libpq: a single port is for all hosts
        one = {key: values[n] if len(values) > 1 else values[0] for key, values in lists.items()}
        name = f"{one.get('host') or one.get('hostaddr') or 'local'}:{one.get('port') or _DEFAULT_PORT}"
        found[name] = make_conninfo(conninfo, **one, target_session_attrs="any")
    return found


def primaries(conninfo: str) -> list[str]:
    """host:port of each server that is no standby. A server that does not answer is ignored."""
    found = []
    for name, alone in each(conninfo).items():
        try:
            with psycopg.connect(alone, connect_timeout=CONNECT_S, autocommit=True) as conn:
                if conn.execute("SELECT pg_is_in_recovery()").fetchone() == (False,):
                    found.append(name)
        except psycopg.Error:
            pass
    return found
