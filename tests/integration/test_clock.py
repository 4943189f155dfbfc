"""Clocks that are set while a node runs: the host's and PostgreSQL's, on one node without Redis.

`Skew` shadows PostgreSQL's clock functions by some of the same names in a schema that the database
searches first; so a test sets "the database's clock" as an operator or NTP would, under everything
that the node asks.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from chatd import server
from chatd.chat.auth import issue
from chatd.errors import CloseCode
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.client import Peer
    from tests.fix_server import MakeServer, Server

DAY_S = 86_400
MONTH_S = 30 * DAY_S


class Skew:
    """A database whose clock can be set."""

    def __init__(self, url: str, off_s: int) -> None:
        self.url = url
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("CREATE SCHEMA skew")
            conn.execute("CREATE TABLE skew.off (s integer)")
            conn.execute("INSERT INTO skew.off VALUES (%s)", (off_s,))
            for name in ("clock_timestamp", "now", "statement_timestamp"):
                conn.execute(
                    f"CREATE FUNCTION skew.{name}() RETURNS timestamptz LANGUAGE sql VOLATILE AS"
                    f" 'SELECT pg_catalog.{name}() + make_interval(secs => (SELECT s FROM skew.off))'"
                )
            conn.execute(f"ALTER DATABASE {conn.info.dbname} SET search_path = public, skew, pg_catalog")

    def set(self, off_s: int) -> None:
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute("UPDATE skew.off SET s = %s", (off_s,))


def token(server: Server, user: str, ends_in_s: float) -> str:
    """As an issuer whose clock is right would make it: it began a year ago."""
    began = time.time() - 365 * DAY_S
    return issue(server.node.keys_in_force.keys, user, int(365 * DAY_S + ends_in_s), began, None, None)  # type: ignore[arg-type]


async def steps(server: Server, n: int) -> None:
    """Until the node has seen so many steps."""
    await until(lambda: server.node.metrics.clock_steps >= n)


async def friends(server: Server, *tokens: str) -> tuple[Peer, Peer]:
    """Alice and bob, who have both sent."""
    alice, bob = [
        await server.connect(name, token=t, watch=["alice", "bob"])
        for name, t in zip(("alice", "bob"), tokens, strict=True)
    ]
    await alice.say("bob")
    await bob.say("alice")
    return alice, bob


async def test_a_hosts_clock_a_month_off_at_start_and_set_right_ends_nobody(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = [MONTH_S]
    monkeypatch.setattr(server, "time", SimpleNamespace(time=lambda: time.time() + off[0]))
    node = await make_server()
    alice, bob = await friends(node, *(token(node, name, 3_600) for name in ("alice", "bob")))
    off[0] = 0
    clock, seen = node.node._clock, node.node._clock._host_offset_ms
    await until(lambda: clock._host_offset_ms <= seen - 1_000)  # until the sweep has seen it
    assert abs((await alice.request("ping"))["ts"] / 1000 - time.time()) < 5
    assert (await bob.say("alice"))["t"] == "ok"
    late = await node.open()
    assert (await late.reply(await late.post("hello", v=1, token=token(node, "carol", -600), device="d1")))[
        "code"
    ] == "token_expired"


async def test_a_databases_clock_a_month_ahead_and_set_right_ends_nobody_and_versions_rise(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    skew = Skew(make_db(), MONTH_S)
    node = await make_server(database_url=skew.url, presence_grace_ms=0)
    alice, bob = await friends(node, token(node, "alice", MONTH_S + 3_600), token(node, "bob", MONTH_S + 3_600))
    told = [p["v"] for p in alice.welcome["presence"]]
    gone = await node.connect("carol", token=token(node, "carol", MONTH_S + 3_600))
    await gone.say("alice")
    await alice.say("carol")
    await gone.close()
    await node.node.store.flush()
    told += [p["v"] for p in (await alice.request("watch", users=["bob", "carol"]))["presence"]]
    skew.set(0)
    await steps(node, 1)
    ok = await alice.request("watch", users=["bob", "carol"])
    assert abs((await alice.request("ping"))["ts"] / 1000 - time.time()) < 5
    assert all(p.get("seen", 0) <= time.time() * 1000 + 1_000 for p in ok["presence"]), ok
    states: dict[str, Any] = {p["user"]: p for p in ok["presence"]}
    assert states["bob"]["state"] == "online"
    assert min(p["v"] for p in ok["presence"]) > max(told)
    alice.pushes.clear()
    await bob.close()
    left = await alice.push("presence")
    assert (left["user"], left["state"]) == ("bob", "offline")
    assert left["v"] > states["bob"]["v"]
    assert left["seen"] <= time.time() * 1000 + 1_000
    await node.node.store.flush()
    with psycopg.connect(skew.url) as conn:
        seen: dict[str, int] = dict(conn.execute("SELECT id, seen_ms FROM public.users").fetchall())
    assert seen["bob"] <= time.time() * 1000 + 1_000, "a time of the wrong clock does not hide the right one"


async def test_an_ended_token_does_not_live_on_when_the_clock_is_set_right(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    skew = Skew(make_db(), -MONTH_S)
    node = await make_server(database_url=skew.url)
    ended, good = await friends(node, token(node, "alice", -3_600), token(node, "bob", 3_600))
    skew.set(0)
    assert await ended.closed() == CloseCode.TOKEN_EXPIRED
    assert (await good.request("ping"))["t"] == "pong"


async def test_gauges_count_sessions_and_users(make_server: MakeServer) -> None:
    node = await make_server(presence_grace_ms=0)

    def gauges() -> tuple[float, float]:
        return tuple(node.node.metrics.gauges[name][1]() for name in ("sessions_now", "users_online_now"))  # type: ignore[return-value]

    async def until_counted(wanted: tuple[int, int]) -> None:
        await until(lambda: gauges() == wanted)

    phone, _, _ = await node.connect("alice", "phone"), await node.connect("alice", "desk"), await node.connect("bob")
    assert gauges() == (3, 2)
    again = await node.connect("alice", "phone")  # takes its own place
    assert gauges() == (3, 2)
    await phone.closed()
    await again.close()
    await until_counted((2, 2))
    await node.peers[1].close()
    await until_counted((1, 1))
