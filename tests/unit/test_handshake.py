"""The opening handshake from bytes to an answer, without a socket."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from websockets.datastructures import Headers

from chatd.addresses import Networks
from chatd.wire.arrival import Arrival, Sources
from chatd.wire.handshake import (
    HEAD_BYTES_MAX,
    REQUESTS_MAX,
    Afterwards,
    Handshake,
    HandshakeResult,
    refusal,
    same_origins,
)
from chatd.wire.http import HttpResponse

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: chat.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
PLAIN = b"GET /x?y HTTP/1.1\r\nHost: h\r\n\r\n"
OURS = b"Sec-WebSocket-Protocol: chatd.v1\r\n"


class Pages:
    """Says what it was asked for."""

    def respond(self, method: str, path: str, headers: Headers) -> HttpResponse:
        if "If-None-Match" in headers:
            return HttpResponse(HTTPStatus.NOT_MODIFIED, (("ETag", '"x"'),), b"")
        return HttpResponse(HTTPStatus.OK, (("Content-Type", "text/plain"),), f"{method} {path}".encode())


def result(data: bytes, *origins: str) -> HandshakeResult | None:
    return Handshake(Pages(), origins).feed(data)


def status(data: bytes, *origins: str) -> int:
    got = result(data, *origins)
    assert got is not None
    return int(got.data.split()[1])


def test_an_upgrade_comes_in_any_pieces_and_what_is_behind_it_is_kept() -> None:
    whole = UPGRADE + OURS + b"\r\n"
    handshake = Handshake(Pages(), ())
    for n in range(len(whole) - 1):
        assert handshake.feed(whole[n : n + 1]) is None
    got = handshake.feed(whole[-1:] + b"\x89\x80")
    assert got is not None
    assert (got.afterwards, got.rest) == (Afterwards.UPGRADED, b"\x89\x80")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in got.data  # RFC 6455 section 1.3
    assert b"Sec-WebSocket-Protocol: chatd.v1\r\n" in got.data


@pytest.mark.parametrize(
    ("offered", "upgraded"),
    [(b"", True), (OURS, True), (b"Sec-WebSocket-Protocol: x, chatd.v1\r\n", True), (OURS.replace(b"1", b"2"), False)],
)
def test_the_subprotocol_is_ours_or_none(offered: bytes, upgraded: bool) -> None:
    got = result(UPGRADE + offered + b"\r\n")
    assert got is not None
    expected = (Afterwards.UPGRADED, "") if upgraded else (Afterwards.CLOSED, "bad_request")
    assert (got.afterwards, got.refused) == expected


def test_whatever_is_no_upgrade_is_answered_by_the_pages_and_the_next_may_follow() -> None:
    got = result(PLAIN)
    assert got is not None
    assert got.afterwards is Afterwards.KEPT
    assert got.data.endswith(b"\r\n\r\nGET /x?y")
    assert b"Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n" in got.data


def test_requests_in_one_piece_are_answered_one_by_one_and_the_last_may_be_an_upgrade() -> None:
    handshake = Handshake(Pages(), ())
    data, paths = PLAIN + PLAIN.replace(b"/x", b"/z") + UPGRADE + b"\r\n" + b"\x89\x80", []
    while (got := handshake.feed(data)) is not None and got.afterwards is Afterwards.KEPT:
        paths.append(got.data.rpartition(b"\r\n")[2])
        data = got.rest
    assert paths == [b"GET /x?y", b"GET /z?y"]
    assert got is not None
    assert (got.afterwards, got.rest) == (Afterwards.UPGRADED, b"\x89\x80")


def test_the_last_of_so_many_requests_closes() -> None:
    handshake = Handshake(Pages(), ())
    all_afterwards = []
    for _ in range(REQUESTS_MAX):
        got = handshake.feed(PLAIN)
        assert got is not None
        all_afterwards.append(got.afterwards)
    assert all_afterwards == [Afterwards.KEPT] * (REQUESTS_MAX - 1) + [Afterwards.CLOSED]
    assert got is not None
    assert b"Connection: close\r\n" in got.data


@pytest.mark.parametrize(
    "request_of",
    [
        PLAIN.replace(b"1.1", b"1.0"),
        PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: x, CLOSE\r\n\r\n"),
        PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n"),
        PLAIN.replace(b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\n"),
        PLAIN.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
        PLAIN.replace(b"Host: h\r\n", b"Host: h\n"),
        b"\r\n" + PLAIN,
    ],
)
def test_after_such_a_request_the_connection_closes(request_of: bytes) -> None:
    """What would follow it is not read: a body, or what another parser takes for the next request."""
    got = result(request_of + PLAIN)
    assert got is not None
    assert (got.afterwards, got.rest) == (Afterwards.CLOSED, b"")
    assert b"Connection: close\r\n" in got.data


def test_a_connection_of_a_trusted_proxy_has_one_request() -> None:
    """The next one may be of another client, and the connection is counted by the first one's address."""
    sources = Sources(Networks(["10.0.0.0/8"]))
    counted: list[str] = []

    def room(address: str, _differ: bool) -> bool:
        counted.append(address)
        return True

    handshake = Handshake(Pages(), (), Arrival(sources, "10.0.0.1", room))
    got = handshake.feed(PLAIN.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n") + PLAIN)
    assert got is not None
    assert (got.afterwards, counted) == (Afterwards.CLOSED, ["192.0.2.1"])


def test_head_is_the_response_without_its_body() -> None:
    got = result(PLAIN.replace(b"GET", b"HEAD"))
    assert got is not None
    assert b"Content-Length: 9\r\n" in got.data
    assert got.data.endswith(b"\r\n\r\n")


def test_what_is_not_modified_has_no_length() -> None:
    got = result(PLAIN.replace(b"\r\n\r\n", b"\r\nIf-None-Match: *\r\n\r\n"))
    assert got is not None
    assert got.data.startswith(b"HTTP/1.1 304 ")
    assert b"Content-Length" not in got.data


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://chat.example", True),
        ("https://chat.example:443", True),
        ("https://other.example", True),
        ("https://other.example:443", True),
        ("https://evil.example", False),
        ("null", False),
    ],
)
def test_a_browser_comes_from_our_own_host_or_an_origin_of_the_settings(origin: str | None, allowed: bool) -> None:
    said = b"" if origin is None else f"Origin: {origin}\r\n".encode()
    got = result(UPGRADE + said + b"\r\n", "https://other.example")
    assert got is not None
    assert (got.afterwards, got.refused) == ((Afterwards.UPGRADED, "") if allowed else (Afterwards.CLOSED, "origin"))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"rubbish\r\n\r\n", 400),
        (UPGRADE.replace(b"13", b"12") + b"\r\n", 400),
        (UPGRADE + b"Host: two\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES_MAX, 431),
    ],
)
def test_a_bad_request_gets_its_status(data: bytes, code: int) -> None:
    assert status(data) == code


def test_the_port_of_a_scheme_may_be_said_or_not() -> None:
    assert same_origins("https://a") == ("https://a", "https://a:443")
    assert same_origins("http://a:80") == ("http://a:80", "http://a")
    assert same_origins("https://a:80") == ("https://a:80",)
    assert same_origins("https://[::1]") == ("https://[::1]", "https://[::1]:443")
    assert same_origins("app://a") == ("app://a",)


def test_a_connection_without_room_gets_a_whole_answer() -> None:
    assert refusal(HTTPStatus.SERVICE_UNAVAILABLE).startswith(b"HTTP/1.1 503 ")
