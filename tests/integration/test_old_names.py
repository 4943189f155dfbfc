"""Users whose ids are older than the rule for new ones (chatd/unicode_ids.py): an upgrade shuts
nobody out.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr
from websockets.exceptions import ConnectionClosed

from chatd import errors
from chatd.config import Settings
from chatd.ids import UserId
from chatd.ops import doctor
from tests.fix_server import MakeServer
from tests.maps import check_maps

HEART = "\u2764\ufe0f"  # as an emoji keyboard writes it
BLANK = "\u3164"


def was_here(conninfo: str, *users: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as conn:
        conn.cursor().executemany("INSERT INTO users (id, seen_ms) VALUES (%s, 5)", [(user,) for user in users])


def wrote(conninfo: str, one: str, other: str) -> None:
    """They have a conversation."""
    with psycopg.connect(conninfo, autocommit=True) as conn:
        a, b = sorted((one, other), key=str.encode)
        conn.execute("INSERT INTO conversations (a, b) VALUES (%s, %s)", (a, b))


async def test_who_was_here_comes_in_and_writes(make_server: MakeServer, fresh_db: str) -> None:
    server = await make_server(database_url=fresh_db)
    was_here(fresh_db, HEART, BLANK)
    bob = await server.connect("bob")
    for user in (HEART, BLANK):
        old = await server.connect(user)
        assert old.welcome["user"] == user
        ok = await old.say("bob", "still here")
        assert ok["t"] == "ok"
        assert (await bob.push("entry"))["from"] == user
        # Their conversation is there now, so the name is no longer new to bob.
        assert (await bob.say(user, "good"))["c"] == ok["c"]
        assert (await old.push("entry"))["body"] == "good"


@pytest.mark.parametrize("peer", ["bob", "\U0001f600"], ids=["of the first side", "of the second side"])
async def test_whom_somebody_wrote_to_comes_in_for_the_first_time(
    make_server: MakeServer, fresh_db: str, peer: str
) -> None:
    server = await make_server(database_url=fresh_db)
    wrote(fresh_db, HEART, peer)
    assert (await server.connect(HEART)).welcome["user"] == HEART


async def test_who_never_was_here_does_not_come_in_and_leaves_no_trace(make_server: MakeServer, fresh_db: str) -> None:
    server = await make_server(database_url=fresh_db)
    was_here(fresh_db, HEART)
    for _ in range(2):  # the first try is not what makes the second one known
        peer = await server.open()
        err = await peer.request("hello", v=1, token=server.token(BLANK), device="d1")
        assert (err["t"], err["code"]) == ("err", "unauthorized")
        assert "U+3164" in err["msg"]
    with psycopg.connect(fresh_db) as conn:
        assert conn.execute("SELECT id FROM users").fetchall() == [(HEART,)]
    await check_maps(server.node)  # in memory no longer than somebody who has left


async def test_while_the_database_is_away_such_a_name_is_told_to_come_again(
    make_server: MakeServer, fresh_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4001 would have the client ask its user for another token."""
    server = await make_server(database_url=fresh_db)

    async def away(_: UserId) -> bool:
        raise errors.Unavailable("away", retry_ms=1_000)

    monkeypatch.setattr(server.node.store, "is_known", away)
    peer = await server.open()
    err = await peer.request("hello", v=1, token=server.token(HEART), device="d1")
    assert (err["code"], err["retry_ms"]) == ("unavailable", 1_000)
    with pytest.raises(ConnectionClosed) as closed:
        await peer.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == errors.CloseCode.OVERLOADED


async def test_a_peer_with_such_a_name_keeps_nobody_from_coming_back(make_server: MakeServer, fresh_db: str) -> None:
    """A client watches whom it shows: were one of them refused, so was its hello."""
    server = await make_server(database_url=fresh_db)
    was_here(fresh_db, HEART)
    await (await server.connect(HEART)).say("alice")
    alice = await server.connect("alice", watch=[HEART, "bob"])
    assert [status["user"] for status in alice.welcome["presence"]] == [HEART, "bob"]
    assert (await alice.say(HEART, "are you there?"))["seq"] == 2
    assert (await alice.request("watch", users=["bob", HEART]))["t"] == "ok"


async def test_nobody_new_can_write_to_such_a_name(make_server: MakeServer, fresh_db: str) -> None:
    server = await make_server(database_url=fresh_db)
    was_here(fresh_db, BLANK)
    alice = await server.connect("alice")
    for t in ("typing", "history"):
        assert (await alice.request(t, to=BLANK))["code"] == "bad_field"
    assert (await alice.request("watch", users=["bob", BLANK]))["field"] == "users"
    err = await alice.say(BLANK)
    assert (err["code"], err["field"]) == ("bad_field", "to")
    assert (await alice.say("bob"))["t"] == "ok"
    with psycopg.connect(fresh_db) as conn:
        assert conn.execute("SELECT a, b FROM conversations").fetchall() == [("alice", "bob")]


def test_doctor_counts_them(fresh_db: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=SecretStr(fresh_db))

    def said() -> list[str]:
        return [str(finding) for finding in doctor.examine(settings) if finding.about == "user ids"]

    was_here(fresh_db, "alice", "Zoë", "\u0645\u06cc\u200c\u062e")
    assert said() == []
    was_here(fresh_db, HEART, BLANK)
    assert [line.partition(":")[0] for line in said()] == ["warn  user ids"]
    assert r"2 could not be taken today ('\u2764\ufe0f', '\u3164')" in said()[0]
