"""PgBouncer before the tests' PostgreSQL, from Debian's package:

`make setup` installs it where it may; where it is missing the tests skip aloud.

    make_bouncer    `make_bouncer(conninfo, pool_mode="session", ignore_startup_parameters="options")`: the conninfo
                    to use instead
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from chatd.postgres import embedded_process
from tests.until import blocking_until

START_S_MAX: Final = 20.0
PORT: Final = 6432

MakeBouncer: TypeAlias = Callable[..., str]


def _binary() -> str:
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip("pgbouncer is not installed: `apt-get install pgbouncer`, or `make setup` as root")
    return found


@pytest.fixture
def make_bouncer() -> Iterator[MakeBouncer]:
    running: list[tuple[subprocess.Popen[bytes], Path]] = []

    def make(conninfo: str, **settings: object) -> str:
        to = conninfo_to_dict(conninfo)
        place = Path(str(to["host"]))
        # Whoever PostgreSQL runs as: its socket is closed to others, and PgBouncer refuses root,
        # too
        owner = pwd.getpwuid(place.stat().st_uid)
        folder = Path(tempfile.mkdtemp(prefix="chatd-bouncer-"))
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        said = {
            "unix_socket_dir": folder,
            "listen_port": PORT,
            "auth_type": "any",
            "pool_mode": "session",
            "max_client_conn": 500,
            "default_pool_size": 100,
            "logfile": folder / "log",
            **settings,
        }
        config = folder / "pgbouncer.ini"
        lines = [f"{name} = {value}" for name, value in said.items()]
        config.write_text(
            f"[databases]\n{to['dbname']} = host={place} port=5432 user={to['user']}"
            f" dbname={to['dbname']}\n[pgbouncer]\n" + "\n".join(lines) + "\n"
        )
        config.chmod(0o644)
        command = [*(embedded_process.run_as_prefix(owner) if os.geteuid() == 0 else []), _binary(), str(config)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        running.append((process, folder))
        through = make_conninfo(host=str(folder), port=PORT, user=str(to["user"]), dbname=str(to["dbname"]))
        blocking_until(lambda: process.poll() is not None or _answers(through), (folder / "log").read_text, START_S_MAX)
        assert process.poll() is None, (folder / "log").read_text()
        return through

    _binary()
    yield make
    for process, folder in running:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _answers(conninfo: str) -> bool:
    try:
        psycopg.connect(conninfo, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
