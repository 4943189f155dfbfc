"""`chatd nodes` over a real Redis, with nodes that live and one that was killed."""

from __future__ import annotations

import json

import pytest

from tests.fix_process import MakeProcess
from tests.fix_redis import OwnRedis
from tests.integration.test_cli import chatd
from tests.until import blocking_until

pytestmark = pytest.mark.cluster


async def test_nodes_and_their_leases_are_listed(make_process: MakeProcess, fresh_db: str, own_redis: OwnRedis) -> None:
    common = {"database_url": fresh_db, "redis_url": own_redis.url, "lease_ms": 1_000, "redis_prefix": "here"}
    web1, web2 = await make_process(node_name="web1", **common), await make_process(node_name="web2", **common)
    flags = ["--redis-url", own_redis.url, "--redis-prefix", "here", "--lease-ms", "1000"]

    def listed() -> dict[str, dict[str, object]]:
        result = chatd("nodes", "--json", *flags)
        assert result.returncode == 0, result.stderr
        return {one["name"]: one for one in json.loads(result.stdout)}

    blocking_until(
        lambda: {name for name, one in listed().items() if one["stands"]} == {"web1", "web2"}, own_redis.said
    )
    told = listed()
    assert (told["web1"]["pid"], told["web1"]["port"]) == (web1.pid, web1.port)
    assert (told["web2"]["pid"], told["web2"]["port"]) == (web2.pid, web2.port)
    web1.kill()
    blocking_until(lambda: not listed()["web1"]["stands"], own_redis.said)
    lines = chatd("nodes", *flags).stdout.splitlines()
    assert len(lines) == 3
    assert "lapsed" in lines[1]
    assert "lapsed" not in lines[2]
    assert chatd("nodes", "--redis-url", own_redis.url).stdout.count("\n") == 1, (
        "nodes of another prefix are another server's"
    )


def test_without_redis_it_says_so(own_redis: OwnRedis) -> None:
    unset = chatd("nodes")
    assert (unset.returncode, len(unset.stderr.splitlines())) == (1, 1)
    assert "--redis-url" in unset.stderr
    own_redis.kill()
    away = chatd("nodes", "--redis-url", own_redis.url)
    assert (away.returncode, len(away.stderr.splitlines())) == (1, 1)
    assert "does not answer" in away.stderr
