"""A reload of the keys beside sessions over real sockets: who ends, who stays, and a hello that is
under way meanwhile. And `token_ttl_max_s`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from chatd.chat import auth
from chatd.chat.auth import KeySet
from chatd.client.client import Client
from chatd.core.identity import Identity
from chatd.errors import CloseCode
from chatd.ids import UserId
from chatd.ops import keys_file
from tests.client import Peer, peer_at
from tests.fix_process import MakeProcess
from tests.fix_server import MakeServer, Server
from tests.integration.test_interleavings_session import Gate
from tests.maps import check_maps

YEAR_9999_S = 253_402_300_799
OLD_NAME = "\u2764\ufe0f"  # taken by releases before the rule of chatd/unicode_ids.py
REMOVED = ("key_removed", "4001")


class KeysFile:
    """A keys file whose content the test changes; `token` is signed by a key whether the file has
    it or not.
    """

    def __init__(self, path: Path, *kids: str) -> None:
        self.path = path
        self.jwks: dict[str, dict[str, Any]] = {kid: keys_file.make("HS256", kid) for kid in kids}
        self.write(*kids)

    def write(self, *kids: str) -> None:
        self.path.write_text(json.dumps({"keys": [self.jwks[kid] for kid in kids]}))
        self.path.chmod(0o600)

    def token(self, user: str, kid: str, *, named: bool = True) -> str:
        other = self.path.with_suffix(f".{kid}")
        jwk = (
            dict(self.jwks[kid]) if named else {name: value for name, value in self.jwks[kid].items() if name != "kid"}
        )
        other.write_text(json.dumps({"keys": [jwk]}))
        other.chmod(0o600)
        return auth.issue(KeySet.load(other), UserId(user), YEAR_9999_S - time.time() - 60, time.time(), None, None)


@pytest.fixture
def file(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys.json", "old", "new")


async def kept(*peers: Peer) -> None:
    """These connections are there, and answer."""
    for peer in peers:
        assert (await peer.request("ping"))["t"] == "pong"


async def revoked(server: Server) -> None:
    """Wait until the node has gone through its sessions."""
    revocation = server.node._revocation
    assert revocation is not None
    assert revocation._task is not None
    await asyncio.wait([revocation._task])


async def test_sessions_of_a_removed_key_end_with_4001_and_others_stay(make_server: MakeServer, file: KeysFile) -> None:
    """The token's `exp` is in the year 9999: without this the session would send for ever."""
    server = await make_server(keys_file=file.path)
    alice, phone = [await server.connect("alice", device, token=file.token("alice", "old")) for device in ("a", "b")]
    bob = await server.connect("bob", token=file.token("bob", "new"))
    stranger = await server.open()
    file.write("new")
    with capture_logs() as lines:
        server.node.reload_keys()
        assert [await alice.closed(), await phone.closed()] == [4001, 4001]
        await revoked(server)
    assert alice.ws.close_reason == "the key of this token was removed"
    await kept(bob)
    assert (await stranger.request("hello", v=1, token=file.token("alice", "old"), device="a"))[
        "code"
    ] == "unauthorized"
    assert server.node.metrics.connections_closed[REMOVED] == 2
    reloaded, *closed, ended = [
        line for line in lines if line["event"] in ("keys.reloaded", "session.closed", "keys.sessions_ended")
    ]
    assert (reloaded["added"], reloaded["removed"]) == ([], ["old"])
    assert {(line["user"], line["code"], line["reason"]) for line in closed} == {
        ("alice", 4001, "the key of this token was removed")
    }
    assert ended["sessions"] == 2
    await check_maps(server.node)


async def test_another_key_under_the_same_kid_is_another_key(make_server: MakeServer, file: KeysFile) -> None:
    server = await make_server(keys_file=file.path)
    alice = await server.connect("alice", token=file.token("alice", "old"))
    file.jwks["old"] = keys_file.make("HS256", "old")
    file.write("old", "new")
    server.node.reload_keys()
    assert await alice.closed() == 4001


async def test_what_removes_no_key_ends_nobody(make_server: MakeServer, file: KeysFile) -> None:
    """The same keys in another order and spelling; a key more, whose `kid` a token without one
    cannot say; a file that is none.
    """
    file.write("old")
    server = await make_server(keys_file=file.path)
    named = await server.connect("alice", token=file.token("alice", "old"))
    nameless = await server.connect("bob", token=file.token("bob", "old", named=False))
    del file.jwks["old"]["alg"]
    file.write("new", "old")
    server.node.reload_keys()
    await revoked(server)
    await kept(named, nameless)
    revocation = server.node._revocation
    assert revocation is not None
    task = revocation._task
    for wrong in ("", "{", '{"keys": []}'):
        file.path.write_text(wrong)
        server.node.reload_keys()
    file.path.unlink()
    server.node.reload_keys()
    assert revocation._task is task, "a reload that failed looks at nobody"
    assert server.node.metrics.reload_failures == 4
    await kept(named, nameless)
    file.write("new")
    server.node.reload_keys()
    assert [await named.closed(), await nameless.closed()] == [4001, 4001]


async def test_the_only_key_of_a_file_without_names(make_server: MakeServer, file: KeysFile) -> None:
    del file.jwks["old"]["kid"], file.jwks["new"]["kid"]
    file.write("old")
    server = await make_server(keys_file=file.path)
    alice = await server.connect("alice", token=file.token("alice", "old"))
    server.node.reload_keys()
    await revoked(server)
    await kept(alice)
    file.write("new")
    server.node.reload_keys()
    assert await alice.closed() == 4001


async def test_a_session_belongs_to_the_key_of_its_newest_token(make_server: MakeServer, file: KeysFile) -> None:
    server = await make_server(keys_file=file.path)
    alice, bob, carol = [
        await server.connect(name, token=file.token(name, "old")) for name in ("alice", "bob", "carol")
    ]
    assert (await alice.request("refresh", token=file.token("alice", "new")))["t"] == "ok"
    assert (await bob.request("refresh", token=file.token("mallory", "new")))["code"] == "unauthorized"
    assert (await carol.request("refresh", token=file.token("carol", "new")))["t"] == "ok"
    assert (await carol.request("refresh", token=file.token("carol", "old")))["t"] == "ok"
    file.write("new")
    server.node.reload_keys()
    assert [await bob.closed(), await carol.closed()] == [4001, 4001]
    await kept(alice)


async def test_the_development_key_made_anew(server: Server, tmp_path: Path) -> None:
    alice = await server.connect("alice")
    server.node.reload_keys()
    await revoked(server)
    await kept(alice)
    (tmp_path / auth.DEVELOPMENT_FILE).unlink()
    server.node.reload_keys()
    assert await alice.closed() == 4001


# ---- a hello under way ---------------------------------------------------------------------------


async def test_a_hello_that_waits_for_its_listing_ends_too(
    make_server: MakeServer, file: KeysFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(keys_file=file.path)
    gate = Gate(monkeypatch, server.node.store, "list_changed")
    alice = await server.open()
    await alice.post("hello", v=1, token=file.token("alice", "old"), device="d1")
    await alice.post("send", to="bob", cid=str(uuid.uuid4()), body="behind hello")
    await gate.until_reached()
    file.write("new")
    server.node.reload_keys()
    await revoked(server)
    gate.go.set()
    assert await alice.closed() == 4001
    assert alice.pushes == [], "no welcome, and nothing sent"
    assert server.node.metrics.sends_ok == 0
    await check_maps(server.node)


async def test_a_key_removed_between_the_check_of_a_token_and_its_session(
    make_server: MakeServer, file: KeysFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reload comes in the very turn, after the token was found good: what is attached then
    belongs to the key that is gone.
    """
    server = await make_server(keys_file=file.path)
    verify = server.node.keys_in_force.verify

    def and_then(token: str) -> Identity:
        identity = verify(token)
        file.write("new")
        server.node.reload_keys()
        return identity

    monkeypatch.setattr(server.node.keys_in_force, "verify", and_then)
    alice = await server.open()
    await alice.post("hello", v=1, token=file.token("alice", "old"), device="d1")
    assert await alice.closed() == 4001
    await check_maps(server.node)


async def test_a_key_removed_while_the_database_is_asked_for_an_old_name(
    make_server: MakeServer, fresh_db: str, file: KeysFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that could not become one today is looked up after its token was found good: the
    session began with the removed key, and stayed.
    """
    server = await make_server(database_url=fresh_db, keys_file=file.path)
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        conn.execute("INSERT INTO users (id, seen_ms) VALUES (%s, 5)", (OLD_NAME,))
    gate = Gate(monkeypatch, server.node.store, "is_known")
    old = await server.open()
    await old.post("hello", v=1, token=file.token(OLD_NAME, "old"), device="d1")
    await gate.until_reached()
    file.write("new")
    server.node.reload_keys()
    await revoked(server)
    gate.go.set()
    assert await old.closed() == 4001
    assert old.pushes == [], "no welcome"
    await check_maps(server.node)


async def test_a_hello_that_was_sent_before_and_is_read_after_the_reload(
    make_server: MakeServer, file: KeysFile
) -> None:
    server = await make_server(keys_file=file.path)
    alice = await server.open()
    await alice.post("hello", v=1, token=file.token("alice", "old"), device="d1")
    file.write("new")
    server.node.reload_keys()  # the node has not read yet: this is its loop
    assert (await alice.push("err"))["code"] == "unauthorized"
    assert await alice.closed() == 4001


async def test_what_a_lane_has_is_stored_and_its_author_learns_it_with_another_token(
    make_server: MakeServer, file: KeysFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(keys_file=file.path, lanes=1)
    alice = await server.connect("alice", token=file.token("alice", "old"))
    bob = await server.connect("bob", token=file.token("bob", "new"))
    first = await alice.say("bob", "1")
    gate = Gate(monkeypatch, server.node.store.lanes.all[0], "_append")
    cid = str(uuid.uuid4())
    await alice.post("send", c=first["c"], cid=cid, body="2")
    await gate.until_reached()
    file.write("new")
    server.node.reload_keys()
    await revoked(server)
    gate.go.set()
    assert await alice.closed() == 4001
    assert [(await bob.push("entry"))["body"] for _ in range(2)] == ["1", "2"]
    again = await server.connect("alice", token=file.token("alice", "new"))
    dup = await again.say("bob", "2", cid=cid, retry=True)
    assert (dup["seq"], dup.get("dup")) == (2, True)
    await check_maps(server.node)


async def test_many_sessions_end_in_slices_beside_others_that_are_served(
    make_server: MakeServer, file: KeysFile
) -> None:
    server = await make_server(keys_file=file.path)
    old = [await server.connect(f"u{n // 10}", f"d{n % 10}", token=file.token(f"u{n // 10}", "old")) for n in range(70)]
    bob = await server.connect("bob", token=file.token("bob", "new"))
    ended: list[int] = []
    revocation = server.node._revocation
    assert revocation is not None
    file.write("new")
    server.node.reload_keys()
    while revocation._task is not None and not revocation._task.done():
        ended.append(server.node.metrics.connections_closed.get(REMOVED, 0))
        await asyncio.sleep(0)
    assert len(set(ended)) >= 3, "not all in one turn"
    await kept(bob)
    assert {await peer.closed() for peer in old} == {4001}
    assert server.node.metrics.connections_closed[REMOVED] == len(old)
    await check_maps(server.node)


async def test_the_sdk_comes_back_with_a_token_of_another_key(make_server: MakeServer, file: KeysFile) -> None:
    server = await make_server(keys_file=file.path)
    asked: list[bool] = []

    def token(renew: bool) -> str:
        asked.append(renew)
        return file.token("ann", "new" if renew else "old")

    async with Client(server.url, token=token, device="d", rng=random.Random(1)) as ann:
        assert (await ann.send("bob", "1")).seq == 1
        file.write("new")
        server.node.reload_keys()
        await revoked(server)
        async with asyncio.timeout(20):
            assert (await ann.send("bob", "2")).seq == 2
    assert asked[:2] == [False, True]


# ---- a real process ------------------------------------------------------------------------------


async def test_sighup_ends_the_sessions_of_a_key_that_is_gone(
    make_process: MakeProcess, fresh_db: str, file: KeysFile
) -> None:
    process = await make_process(database_url=fresh_db, keys_file=file.path)
    async with contextlib.AsyncExitStack() as stack:
        peers = {}
        for user, kid in (("alice", "old"), ("bob", "new")):
            peers[user] = await stack.enter_async_context(peer_at(process, user, token=file.token(user, kid)))
            assert peers[user].welcome["t"] == "welcome"
        file.write("new")
        process.hang_up()
        assert await peers["alice"].closed() == 4001
        await kept(peers["bob"])
    assert '"reason":"the key of this token was removed"' in process.said()


# ---- how long a token may be valid ---------------------------------------------------------------


async def test_a_token_that_is_valid_for_too_long_is_refused_by_hello_and_refresh(
    make_server: MakeServer, file: KeysFile
) -> None:
    server = await make_server(keys_file=file.path, token_ttl_max_s=600)
    keys, now = KeySet.load(file.path), time.time()
    good, long = (auth.issue(keys, UserId("alice"), ttl_s, now, None, None) for ttl_s in (600, 601))
    with capture_logs() as lines:
        refused = await server.open()
        answer = await refused.request("hello", v=1, token=long, device="d1")
        assert (answer["code"], "token_ttl_max_s" in answer["msg"]) == ("unauthorized", True)
        assert await refused.closed() == CloseCode.UNAUTHORIZED
        alice = await server.connect("alice", token=good)
        answer = await alice.request("refresh", token=long)
        assert (answer["code"], "token_ttl_max_s" in answer["msg"]) == ("unauthorized", True)
    await kept(alice)
    told = {line["event"]: line for line in lines if line["event"].endswith(".refused")}
    assert [told[event]["reason"] for event in ("hello.refused", "refresh.refused")] == [answer["msg"]] * 2
    assert (told["refresh.refused"]["user"], told["refresh.refused"]["code"]) == ("alice", "unauthorized")
    assert server.node.metrics.hellos_refused == {("unauthorized",): 1}


async def test_tokens_that_the_node_makes_keep_to_the_setting(make_server: MakeServer) -> None:
    server = await make_server(token_ttl_max_s=600)
    alice = await server.connect("alice")
    assert alice.welcome["exp"] <= (time.time() + 600 + 5) * 1000
