"""Plain HTTP of both ports: one request a connection, then it closes. Pure.

    head ──request_line──► RequestLine(method, path, query) | None    admin port
    HttpResponse(status, headers, body) ──serialize──► bytes          both ports

The chat port needs the parser of websockets for the opening handshake, so that parser reads its
requests. The admin port needs only the first line. There is no keep-alive, no chunked encoding and
no request body, so nothing here waits and nothing grows. The caller bounds the head.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final, NamedTuple

import orjson

METHODS: Final = ("GET", "HEAD")
TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
VERSIONS: Final = (b"HTTP/1.1", b"HTTP/1.0")


class HttpResponse(NamedTuple):
    """A response: status, headers in order, body."""

    status: HTTPStatus
    headers: tuple[tuple[str, str], ...]
    body: bytes


class RequestLine(NamedTuple):
    """`GET /user?id=alice HTTP/1.1`: method, path and query as received, not unquoted."""

    method: bytes
    path: bytes
    query: bytes


def request_line(head: bytes) -> RequestLine | None:
    """The first line of a request's head; None if it is not HTTP/1. Never raises."""
    parts = head.partition(b"\r\n")[0].split(b" ")
    if len(parts) != 3 or parts[2] not in VERSIONS:
        return None
    path, _, query = parts[1].partition(b"?")
    return RequestLine(parts[0], path, query)


def plain(status: HTTPStatus) -> HttpResponse:
    """A response whose body is its status in words."""
    return HttpResponse(status, (("Content-Type", TEXT),), f"{status.phrase}\n".encode())


def json(status: HTTPStatus, value: object, *headers: tuple[str, str]) -> HttpResponse:
    """A response with a value as JSON; `headers` follow the Content-Type."""
    return HttpResponse(status, (("Content-Type", JSON), *headers), orjson.dumps(value))


def serialize(status: HTTPStatus, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """The bytes of a response, headers in ISO 8859-1 and in this order.

    No header is added: the caller gives Content-Length.
    """
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{lines}\r\n".encode("latin-1") + body
