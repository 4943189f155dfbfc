"""The chat port's plain HTTP, and who may shake hands."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import socket
import urllib.error
import urllib.request
from typing import Any, cast

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus

from chatd.net import static_files
from chatd.net.connection import WRITE_HIGH_BYTES
from chatd.net.pages import FOLDER
from chatd.wire.handshake import Handshake
from tests.client import dial
from tests.fix_server import MakeServer, Server
from tests.until import until


async def get(url: str, **headers: str) -> tuple[int, Any, bytes]:
    def fetch() -> tuple[int, Any, bytes]:
        request = urllib.request.Request(url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as e:
            with e:
                return e.code, e.headers, e.read()

    return await asyncio.to_thread(fetch)


async def raw(server: Server, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def test_the_page_and_its_files_come_with_a_strict_policy(server: Server) -> None:
    status, headers, body = await get(f"{server.http}/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"<script" in body
    script = re.findall(r'src="\./(assets/[^"]+)"', body.decode())[0]
    status, headers, _ = await get(f"{server.http}/{script}")
    assert (status, headers["Content-Type"]) == (200, "text/javascript; charset=utf-8")
    assert headers["Cache-Control"] == static_files.IMMUTABLE
    assert (await get(f"{server.http}/healthz"))[0] == 200


def ask(port: int, *paths: str, **headers: str) -> list[tuple[int, Any, bytes, bool]]:
    """The responses to GETs of one connection: status, headers, body, and if the connection stays."""
    answers = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        for path in paths:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            answers.append((answer.status, answer.headers, body, connection.sock is not None))
    return answers


async def test_a_connection_serves_the_whole_page_and_nothing_that_the_browser_has(server: Server) -> None:
    paths = ("/", "/icon.svg", "/nope", "/healthz", "/")
    answers = await asyncio.to_thread(ask, server.port, *paths)
    assert [status for status, *_ in answers] == [200, 200, 404, 200, 200]
    assert all(stays for *_, stays in answers)
    assert server.node.metrics.connections == 1
    etag = answers[0][1]["ETag"]
    ((status, headers, body, _),) = await asyncio.to_thread(ask, server.port, "/", **{"If-None-Match": etag})
    assert (status, headers["ETag"], body) == (304, etag, b"")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    head = await raw(server, b"HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    assert f"Content-Length: {len(answers[0][2])}\r\n".encode() in head
    assert head.endswith(b"\r\n\r\n")


async def test_pipelined_requests_are_answered_in_order_and_the_connection_may_become_a_websocket(
    server: Server,
) -> None:
    plain = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n"
    upgrade = (
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    answer = await raw(server, plain % b"/healthz" + plain % b"/nope" + upgrade + b"\x88\x82\0\0\0\0\x03\xe8")
    assert re.findall(rb"HTTP/1\.1 (\d+) ", answer) == [b"200", b"404", b"101"]
    assert answer.endswith(b"\x88\x02\x03\xe8")


async def test_a_client_that_reads_no_response_gets_no_more_and_is_cut(server: Server) -> None:
    """Its pipelined requests wait until it reads. What is written for it is one response over the mark."""
    sizes = {name: len(file.respond(Headers()).body) for name, file in static_files.read(FOLDER, ()).items()}
    name = max(sizes, key=lambda name: sizes[name])
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    deaf.setblocking(False)
    loop = asyncio.get_running_loop()
    connections = server.node.listener.connections
    unwritten = [0]
    with contextlib.closing(deaf):
        await loop.sock_connect(deaf, ("127.0.0.1", server.port))
        await loop.sock_sendall(deaf, f"GET /{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 31)
        await until(lambda: server.node.metrics.http_requests)
        (connection,) = connections

        def is_cut() -> bool:
            unwritten.append(connection.unwritten)
            return not connections

        await until(is_cut, "the connection is cut")
    assert 0 < max(unwritten) <= WRITE_HIGH_BYTES + sizes[name] + 4_096
    assert server.node.metrics.http_requests < 31


@pytest.mark.parametrize(
    "path",
    ["/nope", "//[", "/../setup.cfg", "/web/index.html", "/%2e%2e/ids.py", "/__init__.py", "/metrics", "//", "/ws/x"],
)
async def test_everything_else_is_404(server: Server, path: str) -> None:
    assert (await get(server.http + path))[0] == 404


async def test_a_development_token_is_for_our_own_page_only(make_server: MakeServer) -> None:
    server = await make_server()
    url = f"{server.http}/dev/token?user=alice"
    status, headers, body = await get(url, **{"X-Chatd-Dev": "1"})
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    peer = await server.connect("alice", token=json.loads(body)["token"])
    assert peer.welcome["user"] == "alice"
    assert (await get(url))[0] == 404
    assert (await get(url, **{"X-Chatd-Dev": "1", "Host": "evil.example"}))[0] == 404
    assert (await get(f"{server.http}/dev/token?user=%00", **{"X-Chatd-Dev": "1"}))[0] == 400
    assert (await get(f"{server.http}/dev/token", **{"X-Chatd-Dev": "1"}))[0] == 400


@pytest.mark.parametrize(("page", "statuses"), [("off", [404, 404]), ("on", [200, 404]), ("development", [200, 200])])
async def test_the_page_and_its_development_login_are_switched_by_a_setting(
    make_server: MakeServer, page: str, statuses: list[int]
) -> None:
    server = await make_server(page=page)
    asked = [await get(server.http + path, **{"X-Chatd-Dev": "1"}) for path in ("/", "/dev/token?user=alice")]
    assert [status for status, *_ in asked] == statuses
    assert (await server.connect("alice")).welcome["user"] == "alice"


async def test_origin_must_be_our_own_or_allowed(make_server: MakeServer) -> None:
    server = await make_server(origins=["https://chat.example.org"])
    for origin in (None, f"http://127.0.0.1:{server.port}", "https://chat.example.org"):
        async with dial(server.url, origin=origin):
            pass
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{server.port}.evil.example"):
        with pytest.raises(InvalidStatus) as e:
            async with dial(server.url, origin=origin):
                pass
        assert e.value.response.status_code == 403


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("name:443", "https://name", True),
        ("name", "https://name:443", True),
        ("name:80", "http://name", True),
        ("name", "http://name:80", True),
        ("[::1]:443", "https://[::1]", True),
        ("[::1]", "https://[::1]:443", True),
        ("Name:443", "https://name", True),
        ("name:8443", "https://name:8443", True),
        ("x", "https://chat.example.org", True),
        ("x", "http://web.example.org:80", True),
        ("name:443", "http://name", False),
        ("name:80", "https://name", False),
        ("name:8443", "https://name", False),
        ("name", "https://name:8443", False),
        ("[::1]", "https://[:443", False),
        ("x", "https://chat.example.org:80", False),
    ],
)
def test_the_port_of_a_scheme_may_be_said_or_not(host: str, origin: str, allowed: bool) -> None:
    head = f"GET /ws HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    head += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    answer = Handshake(cast("Any", None), ("https://chat.example.org:443", "http://web.example.org")).feed(
        head.encode()
    )
    assert answer is not None
    assert answer.data.startswith(b"HTTP/1.1 101 " if allowed else b"HTTP/1.1 403 ")


async def test_the_subprotocol_is_ours_or_none(server: Server) -> None:
    async with dial(server.url, subprotocols=["other", "chatd.v1"]) as ws:
        assert ws.subprotocol == "chatd.v1"
    async with dial(server.url, subprotocols=None) as ws:
        assert ws.subprotocol is None
    with pytest.raises(InvalidStatus) as e:
        async with dial(server.url, subprotocols=["chatd.v2"]):
            pass
    assert e.value.response.status_code == 400


async def test_frames_that_come_with_the_handshake_are_read(server: Server) -> None:
    ping = b"\x89\x80\x00\x00\x00\x00"
    head = (
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    close = b"\x88\x82\x00\x00\x00\x00\x03\xe8"
    answer = await raw(server, head + ping + close)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.endswith(b"\x8a\x00\x88\x02\x03\xe8")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b" 400 "),
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", b" 400 "),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", b" 405 "),
        (b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n", b" 426 "),
        (b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 20_000 + b"\r\n\r\n", b" 431 "),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n", b" 431 "),
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n", b" 414 "),
    ],
)
async def test_a_bad_request_gets_its_status_and_the_end(server: Server, data: bytes, status: bytes) -> None:
    answer = await raw(server, data)
    assert status in answer.split(b"\r\n")[0]


async def test_too_many_connections_from_one_address_get_503(make_server: MakeServer) -> None:
    server = await make_server(connections_per_address_max=2)
    await server.connect("alice")
    await server.connect("bob")
    with pytest.raises(InvalidStatus) as e:
        await server.connect("carol")
    assert e.value.response.status_code == 503
    await server.peers[0].close()
    await server.connect("carol")
