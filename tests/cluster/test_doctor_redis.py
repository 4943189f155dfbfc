"""What `chatd doctor` and a start make of a Redis that is set up otherwise."""

from __future__ import annotations

import pytest

from chatd.cluster.redis.client import RedisClient
from chatd.errors import SettingError
from chatd.ops.doctor import _ask_redis
from tests.fix_redis import OwnRedis
from tests.fix_server import MakeServer

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("policy", "levels"), [("noeviction", ["ok"]), ("allkeys-lru", ["ok", "warn"]), ("volatile-ttl", ["ok", "warn"])]
)
async def test_a_redis_that_takes_keys_out_when_it_is_full_is_named(
    own_redis: OwnRedis, policy: str, levels: list[str]
) -> None:
    own_redis.config("maxmemory", "100mb")
    own_redis.config("maxmemory-policy", policy)
    findings = await _ask_redis(own_redis.url, "chatd")
    assert [finding.level for finding in findings] == levels
    if len(findings) > 1:
        assert f"maxmemory-policy is {policy}" in findings[1].what


async def test_a_node_with_its_own_prefix_starts_as_a_user_who_may_do_nothing_else(
    own_redis: OwnRedis, make_server: MakeServer, fresh_db: str
) -> None:
    own_redis.command(
        "ACL",
        "SETUSER",
        "app",
        "on",
        ">secret",
        "~{site}:*",
        "resetchannels",
        "&site:*",
        "+@all",
        "-@admin",
        "-@dangerous",
    )
    url = f"redis://app:secret@127.0.0.1:{own_redis.port}"
    server = await make_server(database_url=fresh_db, redis_url=url, redis_prefix="site")
    assert server.node.cluster is not None
    await server.connect("alice")
    redis_client = RedisClient(url)
    try:
        with pytest.raises(SettingError, match=r"~\{other\}:\*"):
            await redis_client.check("other")
    finally:
        await redis_client.close()
