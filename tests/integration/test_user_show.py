"""`chatd user show`: why somebody gets nothing, asked of a real node and database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from chatd.config import Settings
from chatd.ids import DeviceId, UserId
from chatd.net.connection import ClientConnection
from chatd.ops import user_report
from tests.integration.test_cli import chatd
from tests.until import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fix_redis import OwnRedis
    from tests.fix_server import MakeServer, Server


async def show(server: Server, user: str, **more: Any) -> user_report.Report:
    settings = Settings(database_url=server.node.settings.database_url, admin_port=server.node.admin_port, **more)
    conninfo = settings.database_url
    assert conninfo is not None
    return await asyncio.to_thread(user_report.read, settings, conninfo.get_secret_value(), UserId(user))


async def test_sessions_cursors_and_what_is_missing_are_told(make_server: MakeServer) -> None:
    server = await make_server()
    alice, bob = await server.connect("alice", "phone"), await server.connect("bob", "desk")
    sent = await alice.say("bob", "a secret text")
    report = await show(server, "bob")
    (node,) = report.nodes
    (session,) = node.sessions
    assert (session["device"], session["state"], session["address"], session["queue_bytes"]) == (
        "desk",
        "live",
        "127.0.0.1",
        0,
    )
    (conversation,) = report.conversations
    assert (conversation.peer, conversation.head, conversation.delivered, conversation.unread) == ("alice", 1, 0, 1)
    assert report.findings == ["with alice: no device has acknowledged 1 to 1"]
    assert "secret" not in user_report.as_json(report) + user_report.text(report)

    await bob.request("read", c=sent["c"], seq=1)
    await server.node.store.flush()
    assert (await show(server, "bob")).findings[0].startswith("nothing is wrong")

    await bob.close()
    await alice.say("bob")
    gone, missing = (await show(server, "bob")).findings
    assert gone.startswith("not connected anywhere, last seen ")
    assert missing == "with alice: no device has acknowledged 2 to 2"


async def test_a_client_that_does_not_read_is_told(make_server: MakeServer) -> None:
    server = await make_server()
    alice, _ = await server.connect("alice"), await server.connect("bob")
    connection = server.node.registry.users[UserId("bob")].sessions[DeviceId("d1")].sink
    assert isinstance(connection, ClientConnection)
    connection.pause_writing()  # as the transport does when the client's socket is full
    await alice.say("bob", "x" * 2048)
    waiting, *_ = (await show(server, "bob")).findings
    assert waiting.startswith("device d1 at node ")
    assert " does not read: 2" in waiting
    connection.resume_writing()


def test_names_that_cannot_be_found_are_told_in_one_line(fresh_db: str, tmp_path: Path) -> None:
    for name, status, says in (
        ("zed", 1, "no user zed: nobody of this name has connected"),
        ("z\x1bd", 2, "USER: 'z\\x1bd' is no user id"),
    ):
        result = chatd(
            "user", "show", name, "--database-url", fresh_db, "--admin-port", "-1", "--data-dir", str(tmp_path)
        )
        assert (result.returncode, result.stdout) == (status, "")
        assert result.stderr.startswith(f"chatd: {says}")
        assert result.stderr.count("\n") == 1


@pytest.mark.cluster
async def test_all_nodes_are_asked_and_one_that_does_not_hear_the_others_says_so(
    make_server: MakeServer, make_db: Callable[[], str], own_redis: OwnRedis
) -> None:
    settings = {"database_url": make_db(), "redis_url": own_redis.url}
    here = await make_server(**settings, node_name="here")
    there = await make_server(**settings, node_name="there")
    await here.connect("bob", "phone")
    await there.connect("bob", "desk")
    report = await show(here, "bob", redis_url=own_redis.url)
    assert {(node.name, one["device"]) for node in report.nodes for one in node.sessions} == {
        ("here", "phone"),
        ("there", "desk"),
    }
    assert report.findings[0].startswith("nothing is wrong")

    own_redis.kill()
    cluster = here.node.cluster
    assert cluster is not None
    await until(lambda: not cluster.pubsub.up)
    # The one node of the settings is left to ask
    redis, node = (await show(here, "bob", redis_url=own_redis.url)).findings
    assert redis.startswith("Redis cannot be asked (")
    assert node.startswith("connected at node 127.0.0.1:")
    assert "Redis is away" in node


async def test_a_database_that_is_away_hides_no_sessions(make_server: MakeServer) -> None:
    server = await make_server()
    await server.connect("bob")
    settings = Settings(admin_port=server.node.admin_port)
    report = await asyncio.to_thread(user_report.read, settings, "host=127.0.0.1 port=1 dbname=x", UserId("bob"))
    assert json.loads(user_report.as_json(report))["nodes"][0]["sessions"][0]["device"] == "d1"
    assert report.findings[0].startswith("the database cannot be asked (away:")
