"""The servers that the other tests rely on are what they say, and none is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fix_redis import OwnRedis
from tests.until import blocking_until

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
STARTS_ONE = """
import sys
from pathlib import Path
from tests.fix_redis import OwnRedis
server = OwnRedis(Path(sys.argv[1]))
server.start()
if sys.argv[2] == "freeze":
    server.freeze()
print(server.pid, flush=True)
sys.stdin.read()
"""


def test_a_restart_is_empty_and_on_the_same_port(own_redis: OwnRedis) -> None:
    own_redis.command("SET", "a", 1)
    own_redis.config("maxmemory", 12_345_678)
    url, pid = own_redis.url, own_redis.pid
    own_redis.freeze()
    own_redis.start()
    assert (own_redis.url, own_redis.runs) == (url, True)
    assert own_redis.pid != pid
    assert own_redis.command("GET", "a") is None
    assert own_redis.command("CONFIG", "GET", "maxmemory")[1] == b"0"
    own_redis.kill()
    assert not own_redis.runs


@pytest.mark.parametrize("state", ["run", "freeze"])
def test_a_server_ends_with_whoever_started_it(state: str, redis_folder: Path) -> None:
    tests = subprocess.Popen(
        [sys.executable, "-c", STARTS_ONE, str(redis_folder), state],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert tests.stdout is not None
    pid = int(tests.stdout.readline())
    assert _runs(pid)
    tests.kill()
    tests.communicate()
    blocking_until(lambda: not _runs(pid), "redis-server is gone")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"  # where nobody reaps orphans
    except (ProcessLookupError, FileNotFoundError):
        return False
