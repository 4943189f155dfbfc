"""Hostile bytes: whatever a client sends gets an answer or a close code, the node lives on, others
are served, and no bug of ours shows.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.exceptions import ConnectionClosed

from chatd.ids import UserId
from chatd.protocol import REQUEST_TYPES
from tests.fix_server import MakeServer, Server

SEEDS = range(8)
FRAMES = 300


def value(r: random.Random, depth: int = 0) -> Any:
    """Something for a key: right, nearly right, or absurd."""
    pick: list[Any] = [
        None,
        True,
        -1,
        0,
        1,
        2,
        3,
        2**53,
        2**63,
        2**64,
        1e308,
        1.5,
        "",
        "1",
        "2",
        "0",
        "-1",
        "bob",
        "alice",
        "x" * 70,
        "\u202e",
        "'; DROP TABLE entries; --",
        "<script>alert(1)</script>",
        str(uuid.UUID(int=r.getrandbits(128))),
        "😀" * 512,
        "a" * 2048,
        "a" * 2049,
        "\x00",
        "\u0085",
        "e\u0301",
        "online",
        "away",
        " bob",
        "99999999999999999999",
        "1.1",
        "1.99999999999999999999999",
    ]
    if depth < 2:
        pick += [
            [value(r, depth + 1) for _ in range(r.randrange(4))],
            {str(value(r, 2)): value(r, depth + 1) for _ in range(r.randrange(4))},
        ]
    return r.choice(pick)


def frame(r: random.Random, id: int) -> str | bytes:
    t = r.choice([*REQUEST_TYPES, "nonsense"])
    keys = [
        "c",
        "to",
        "cid",
        "body",
        "ref",
        "seq",
        "before",
        "after",
        "limit",
        "cursor",
        "users",
        "state",
        "token",
        "retry",
        "v",
        "device",
        "since",
    ]
    sane = {
        "to": "bob",
        "cid": str(uuid.UUID(int=r.getrandbits(128))),
        "body": "hi",
        "ref": 1,
        "seq": 1,
        "users": ["bob"],
        "state": "away",
    }
    o: dict[str, Any] = {"t": t, "id": id}
    for key in keys:
        chance = r.random()
        if chance < 0.35 and key in sane:
            o[key] = sane[key]
        elif chance < 0.5:
            o[key] = value(r)
    if r.random() < 0.03:
        o[r.choice(["t", "id"])] = value(r)
    text = json.dumps(o)
    if r.random() < 0.03:
        return text[: r.randrange(len(text))]
    return text


@pytest.mark.parametrize("seed", SEEDS)
async def test_random_requests_neither_break_the_node_nor_others(make_server: MakeServer, seed: int) -> None:
    server = await make_server(rate_messages=1000, frames_burst=10_000, frames_per_s=10_000)
    r = random.Random(seed)
    witness = await server.connect("witness")
    with capture_logs() as logs:
        eve = await server.connect("eve")
        for id in range(2, FRAMES):
            try:
                await eve.send_raw(frame(r, id))
                if id % 50 == 0:
                    await asyncio.sleep(0)
            except ConnectionClosed:
                eve = await server.connect("eve")
        assert (await witness.say("witness", f"still here {seed}"))["t"] == "ok"
        assert (await (await server.connect("eve", "other")).request("ping"))["t"] == "pong"
    assert [
        entry for entry in logs if entry["log_level"] in ("error", "critical") or entry["event"].endswith(".bug")
    ] == []


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x00binary", 1003),
        ("[" * 5_000 + "]" * 5_000, None),
        ('{"t":"ping","id":1' + "0" * 400 + "}", None),
        ("x" * 16_385, 1009),
        ("null", None),
        ('"text"', None),
        ("", None),
        ('{"t":"ping","id":1e3}', None),
        ('{"t":"ping","id":true}', None),
        ('{"id":5}', None),
    ],
)
async def test_an_unreadable_frame_gets_id_0_or_a_close_code(
    server: Server, payload: str | bytes, code: int | None
) -> None:
    alice = await server.connect("alice")
    await alice.send_raw(payload)
    if code is not None:
        assert await alice.closed() == code
    else:
        reply = await alice.recv()
        assert (reply["t"], reply["id"], reply["code"]) == ("err", 0, "bad_frame")
        await alice.quiet()


async def test_of_equal_keys_the_last_counts_and_unknown_ones_are_ignored(server: Server) -> None:
    alice = await server.connect("alice")
    await alice.send_raw(
        '{"t":"send","id":2,"to":"eve","cid":"8c1e0000-0000-4000-8000-000000000001","body":"a","body":"b","to":"bob","new":[1]}'
    )
    assert (await alice.reply(2))["seq"] == 1
    alice.last_id = 2
    page = await alice.request("history", to="bob")
    assert page["entries"][0]["body"] == "b"


async def test_too_many_unreadable_frames_close(server: Server) -> None:
    alice = await server.connect("alice")
    for _ in range(30):
        await alice.send_raw("{")
    assert await alice.closed() == 4000


async def test_sql_and_script_as_text_and_as_name_are_text(server: Server) -> None:
    name = "Robert'); DROP TABLE users;--"
    body = "<script>alert('x')</script> $1 %s \\ \" '; DELETE FROM entries; --\n\tend"
    alice, bobby = await server.connect("alice"), await server.connect(name)
    await alice.say(name, body)
    entry = await bobby.push()
    assert (entry["body"], entry["to"]) == (body, name)
    assert (await alice.request("history", to=name))["entries"][0]["body"] == body


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("é" * 1024, None),
        ("é" * 1024 + "a", "too_long"),
        ("", "bad_text"),
        ("a\x00b", "bad_text"),
        ("a\x7f", "bad_text"),
    ],
)
async def test_bodies_are_counted_in_bytes_and_kept_to_the_letter(server: Server, body: str, code: str | None) -> None:
    alice, bob = await server.connect("alice"), await server.connect("bob")
    reply = await alice.say("bob", body)
    assert reply.get("code") == code
    if code is None:
        assert (await bob.push())["body"] == body


async def test_requests_before_hello_and_a_second_hello_are_refused(server: Server) -> None:
    peer = await server.open()
    assert (await peer.request("ping"))["code"] == "bad_state"
    assert (await peer.request("hello", v=2, token="x", device="d"))["code"] == "bad_version"
    assert await peer.closed() == 1000
    alice = await server.connect("alice")
    assert (await alice.request("hello", v=1, token=server.token("bob"), device="d"))["code"] == "bad_state"


async def test_a_refused_token_closes_with_4001(server: Server) -> None:
    peer = await server.open()
    assert (await peer.request("hello", v=1, token="a.b.c", device="d"))["code"] == "unauthorized"
    assert await peer.closed() == 4001


def masked(opcode: int, payload: bytes) -> bytes:
    """One whole client frame, with a mask of zeros."""
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return bytes([0x80 | opcode]) + size + bytes(4) + payload


async def test_a_hello_that_leaves_in_the_same_breath_holds_nothing(server: Server) -> None:
    hello = json.dumps(
        {"t": "hello", "id": 1, "v": 1, "token": server.token("alice"), "device": "d", "watch": ["bob"]}
    ).encode()
    head = (
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head + masked(1, hello) + masked(8, b"\x03\xe8"))
    await reader.read()
    writer.close()
    await (await server.connect("witness")).request("ping")  # every task begun before this hello has had its turn
    user = server.node.registry.users.get(UserId("alice"))
    assert user is None or not user.sessions
    assert list(server.node.presence.watchers(UserId("bob"))) == []


async def test_a_watch_that_leaves_in_the_same_breath_watches_nobody(server: Server) -> None:
    alice = await server.connect("alice")
    transport = alice.ws.transport
    watch = json.dumps({"t": "watch", "id": 2, "users": ["bob"]}).encode()
    transport.write(masked(1, watch) + masked(8, b"\x03\xe8"))
    await alice.ws.wait_closed()
    await (await server.connect("witness")).request("ping")
    assert list(server.node.presence.watchers(UserId("bob"))) == []


async def test_away_behind_hello_stands(server: Server) -> None:
    alice, bob = await server.connect("alice"), await server.connect("bob")
    await alice.say("bob")
    await bob.say("alice")
    phone = await server.open()
    id = await phone.post("hello", v=1, token=server.token("carol"), device="phone")
    away = await phone.post("presence", state="away")
    await phone.reply(id)
    assert (await phone.reply(away))["t"] == "ok"
    status = server.node.presence.status(UserId("carol"))
    assert status is not None
    assert status.status.value == "away"
