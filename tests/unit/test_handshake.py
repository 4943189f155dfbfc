"""The opening handshake from bytes to an answer, without a socket."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from websockets.datastructures import Headers

from chatd.wire.handshake import HEAD_BYTES_MAX, Handshake, HandshakeResult, refusal, same_origins
from chatd.wire.http import HttpResponse

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: chat.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
OURS = b"Sec-WebSocket-Protocol: chatd.v1\r\n"


class Pages:
    """Says what it was asked for."""

    def respond(self, method: str, path: str, _headers: Headers) -> HttpResponse:
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
    assert (got.upgraded, got.rest) == (True, b"\x89\x80")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in got.data  # RFC 6455 section 1.3
    assert b"Sec-WebSocket-Protocol: chatd.v1\r\n" in got.data


@pytest.mark.parametrize(
    ("offered", "upgraded"),
    [(b"", True), (OURS, True), (b"Sec-WebSocket-Protocol: x, chatd.v1\r\n", True), (OURS.replace(b"1", b"2"), False)],
)
def test_the_subprotocol_is_ours_or_none(offered: bytes, upgraded: bool) -> None:
    got = result(UPGRADE + offered + b"\r\n")
    assert got is not None
    assert (got.upgraded, got.refused) == ((True, "") if upgraded else (False, "bad_request"))


def test_whatever_is_no_upgrade_is_answered_by_the_pages() -> None:
    got = result(b"GET /x?y HTTP/1.1\r\nHost: h\r\n\r\n")
    assert got is not None
    assert not got.upgraded
    assert got.data.endswith(b"\r\n\r\nGET /x?y")
    assert b"Connection: close\r\n" in got.data


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
    assert (got.upgraded, got.refused) == ((True, "") if allowed else (False, "origin"))


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
