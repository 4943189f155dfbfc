"""Plain HTTP as both ports speak it: one request a connection, and it closes.

Pure: the head's first line in, an answer's bytes out.

    head ──request_line──► RequestLine(method, path, query) | None     the admin port's; the chat port's head is read by websockets
    Page(status, headers, body) ──serialize──► bytes                   both ports'

The chat port needs websockets' parser for the opening handshake, and the same parser has then read
the request for a page. The admin port needs the first line alone. No keep-alive, no chunks, no
bodies of requests: so nothing here waits, and nothing grows. The caller bounds the head before it
hands it over.
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


class Page(NamedTuple):
    """An answer: status, headers in order, body."""

    status: HTTPStatus
    headers: tuple[tuple[str, str], ...]
    body: bytes


class RequestLine(NamedTuple):
    """`GET /user?id=alice HTTP/1.1`: method, path and query as they came, not unquoted."""

    method: bytes
    path: bytes
    query: bytes


def request_line(head: bytes) -> RequestLine | None:
    """Of a request's head; None if it is not HTTP/1. Never raises."""
    parts = head.partition(b"\r\n")[0].split(b" ")
    if len(parts) != 3 or parts[2] not in VERSIONS:
        return None
    path, _, query = parts[1].partition(b"?")
    return RequestLine(parts[0], path, query)


def plain(status: HTTPStatus) -> Page:
    """An answer that is its status in words."""
    return Page(status, (("Content-Type", TEXT),), f"{status.phrase}\n".encode())


def json(status: HTTPStatus, value: object, *headers: tuple[str, str]) -> Page:
    """A value as JSON; `headers` follow the Content-Type."""
    return Page(status, (("Content-Type", JSON), *headers), orjson.dumps(value))


def serialize(status: HTTPStatus, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """The bytes of an answer, headers in ISO 8859-1 and in this order.

    Nothing is added: Content-Length is the caller's.
    """
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{lines}\r\n".encode("latin-1") + body
