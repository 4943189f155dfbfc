"""Behind proxies: whose connection it is, over real sockets.

Limits and the log go by the client's address.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs
from websockets.exceptions import InvalidStatus

from chatd import config_sources
from chatd.errors import SettingError
from chatd.net.connection import ClientConnection
from chatd.net.listener import Listener
from chatd.wire.proxy_protocol import SIGNATURE_V2
from tests.fix_server import MakeServer
from tests.until import until

if TYPE_CHECKING:
    from tests.fix_server import Server

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
V1 = b"PROXY TCP4 203.0.113.7 10.0.0.1 51234 8080\r\n"
V2 = SIGNATURE_V2 + b"\x21\x11\x00\x0c" + bytes((203, 0, 113, 8)) + bytes(8)


async def raw(server: Server, *pieces: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(10):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        answer = await reader.read()
    writer.close()
    return answer


async def test_limits_and_logs_go_by_the_address_that_a_trusted_proxy_names(make_server: MakeServer) -> None:
    server = await make_server(trusted_proxies=["127.0.0.0/8"], connections_per_address_max=1)
    with capture_logs() as lines:
        first = await server.open(additional_headers={"X-Forwarded-For": "198.51.100.1, 203.0.113.7"})
        other = await server.open(additional_headers={"Forwarded": 'for="[2001:db8::1]:5"'})
        # The second one of an address, and of a network
        for header in ({"X-Forwarded-For": "203.0.113.7"}, {"X-Forwarded-For": "2001:db8::2"}):
            with pytest.raises(InvalidStatus) as e:
                await server.open(additional_headers=header)
            assert e.value.response.status_code == 503
        for peer, user in ((first, "alice"), (other, "bob")):
            assert (await peer.request("hello", v=1, token=server.token(user), device="d"))["t"] == "welcome"
            await peer.close()
        # Hellos, too, are counted so
        assert set(server.node.services.addresses._full_at) <= {"203.0.113.7", "2001:db8::/64"}
        await server.node.listener.empty.wait()
        await server.open(additional_headers={"X-Forwarded-For": "203.0.113.7"})  # its place is free again
    told = [(line["event"], line["address"]) for line in lines if "address" in line]
    assert told.count(("connection.refused", "203.0.113.7")) == 1
    for event in ("session.opened", "session.closed"):
        assert [address for name, address in told if name == event] == ["203.0.113.7", "2001:db8::1"]
    assert server.node.metrics.connections_refused == {("connections_per_address_max",): 2}


async def test_who_is_no_trusted_proxy_is_counted_by_its_own_address(make_server: MakeServer) -> None:
    server = await make_server(connections_per_address_max=1)
    with capture_logs() as lines:
        await server.open(additional_headers={"X-Forwarded-For": "203.0.113.7"})
        with pytest.raises(InvalidStatus):
            await server.open(additional_headers={"X-Forwarded-For": "203.0.113.8"})
    assert [(line["event"], line.get("setting")) for line in lines if line["log_level"] == "warning"] == [
        ("proxy.unnamed", "trusted_proxies")
    ]


@pytest.mark.parametrize(
    ("pieces", "address"),
    [
        ([V1 + GET], "203.0.113.7"),
        ([V1[:5], V1[5:], GET], "203.0.113.7"),
        ([V2, GET], "203.0.113.8"),
        ([SIGNATURE_V2 + b"\x20\x00\x00\x00" + GET], "127.0.0.1"),
        (
            [V1.replace(b"203.0.113.7", b"127.0.0.9") + GET[:-2] + b"X-Forwarded-For: 203.0.113.9\r\n\r\n"],
            "203.0.113.9",
        ),
        ([GET], None),
        ([b"PROXY TCP4 nobody\r\n" + GET], None),
    ],
)
async def test_a_proxy_header_is_required_and_believed(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], address: str | None
) -> None:
    server = await make_server(trusted_proxies=["127.0.0.0/8"], proxy_protocol=True)
    seen: list[str] = []
    count = Listener._count

    def look(listener: Listener, connection: ClientConnection) -> bool:
        seen.append(connection.address)
        return count(listener, connection)

    monkeypatch.setattr(Listener, "_count", look)
    answer = await raw(server, *pieces)
    assert seen == ([] if address is None else [address])
    assert answer.startswith(b"HTTP/1.1 200" if address is not None else b"")
    assert server.node.metrics.connections_refused == ({} if address is not None else {("proxy_header",): 1})


@pytest.mark.parametrize("start", [b"", b"PROXY ", SIGNATURE_V2])
async def test_a_proxy_header_has_the_time_of_a_handshake(make_server: MakeServer, start: bytes) -> None:
    server = await make_server(trusted_proxies=["127.0.0.0/8"], proxy_protocol=True)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(start)
    listener = server.node.listener
    async with asyncio.timeout(10):
        await until(lambda: listener.connections)
        for connection in listener.connections:
            connection.deadline = 0.0  # its time is over
        listener.sweep()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
    assert server.node.metrics.connections_refused == {("handshake_timeout",): 1}


async def test_a_proxy_header_is_taken_from_trusted_peers_alone(make_server: MakeServer) -> None:
    server = await make_server(trusted_proxies=["10.0.0.0/8"], proxy_protocol=True)
    with contextlib.suppress(ConnectionResetError):  # what we sent is not read
        assert (await raw(server, V1 + GET)).startswith(b"HTTP/1.1 503")
    assert server.node.metrics.connections_refused == {("not_a_proxy",): 1}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            {"trusted_proxies": "10.0.0.1/8"},
            "trusted_proxies: 10.0.0.1/8 from --trusted-proxies names an address within a network",
        ),
        (
            {"trusted_proxies": "nginx"},
            "trusted_proxies: nginx from --trusted-proxies is no network; give networks such as 10.0.0.0/8",
        ),
        (
            {"proxy_protocol": "true"},
            "proxy_protocol: true from --proxy-protocol needs proxies that may send its header",
        ),
        ({"forwarded_header": "x-real-ip"}, "forwarded_header: x-real-ip from --forwarded-header is wrong"),
    ],
)
def test_wrong_settings_of_proxies_are_told_in_one_line(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingError) as e:
        config_sources.load(flags, None, {})
    assert str(e.value).startswith(sentence)
