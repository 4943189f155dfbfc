"""The opening handshake and plain HTTP, by websockets' sans-I/O core, which is dropped afterwards.

Pure: bytes in, a HandshakeResult out.

    bytes ──feed──► None (not complete yet)
                  | HandshakeResult(upgraded, data to send, bytes after the request)

The head of the request is collected here, up to `HEAD_BYTES_MAX`, and only a whole head goes to the
library. So bytes that a client sends after it in the same segment are not lost in the library's
buffers. A connection has one request: one that is no upgrade is answered, and the connection
closes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol, cast

from websockets.datastructures import Headers, MultipleValuesError
from websockets.exceptions import NegotiationError
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Origin, Subprotocol

from chatd.protocol import SUBPROTOCOL
from chatd.wire.arrival import Arrival
from chatd.wire.http import HttpResponse, plain, serialize
from chatd.wire.proxy_protocol import Malformed

HEAD_BYTES_MAX: Final = 16_384
WS_PATH: Final = "/ws"
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HAS_PORT: Final = re.compile(r":[0-9]+$")  # does not match `[::1]`


class HttpHandler(Protocol):
    """Answers plain HTTP requests."""

    def respond(self, method: str, path: str, headers: Headers) -> HttpResponse: ...


class HandshakeResult(NamedTuple):
    """Send `data`. `upgraded`: a WebSocket from now on, whose first bytes are `rest`.

    Else close the connection; `refused` is the reason for metric and log.
    """

    upgraded: bool
    data: bytes
    rest: bytes
    refused: str = ""


class _Core(ServerProtocol):
    """The library's core, with our subprotocol.

    The selection is a method of a subclass: a function that is passed in would be kept bound in the
    instance, which makes a cycle for the garbage collector.
    """

    def select_subprotocol(self, subprotocols: Sequence[Subprotocol]) -> Subprotocol | None:
        """Ours if it is offered, and none if none is (a client that only knows the page).

        Raises NegotiationError if only others are offered.
        """
        if not subprotocols:
            return None
        if SUBPROTOCOL in subprotocols:
            return Subprotocol(SUBPROTOCOL)
        raise NegotiationError(f"invalid subprotocol; expected {SUBPROTOCOL}")


class Handshake:
    """One handshake.

    `origins`: those allowed besides the server's own host. `arrival`: set if a trusted proxy
    connected.
    """

    __slots__ = ("_arrival", "_head", "_origins", "_pages")

    def __init__(self, pages: HttpHandler, origins: Collection[str], arrival: Arrival | None = None) -> None:
        self._head = b""
        self._pages = pages
        self._origins = origins
        self._arrival = arrival

    def feed(self, data: bytes) -> HandshakeResult | None:
        """Take more bytes; gives the result once the head is whole, after which it is finished."""
        if self._arrival is not None and not self._head:
            try:
                behind = self._arrival.preface(data)
            except Malformed:
                return HandshakeResult(False, b"", b"", "proxy_header")
            if behind is None:
                return None
            data = behind
        # Only new bytes are searched for the end of the head, so one byte at a time costs no more.
        seen = max(len(self._head) - 3, 0)
        self._head += data
        end = self._head.find(b"\r\n\r\n", seen)
        if end < 0 or end > HEAD_BYTES_MAX:
            return _bad(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) if len(self._head) > HEAD_BYTES_MAX else None
        return self._complete(self._head[: end + 4], self._head[end + 4 :])

    def _complete(self, head: bytes, rest: bytes) -> HandshakeResult:
        core = _Core()
        try:
            return self._judge(core, head, rest)
        finally:
            # Break reference cycles, which would wait for the garbage collector: the parser is a
            # generator that holds `core`, and `core` holds it (12 KB). The error of a refused
            # handshake has a traceback that holds the stack frames up to the connection.
            core.parser.close()
            error: BaseException | None = core.handshake_exc
            while error is not None:
                error.__traceback__ = None
                error = error.__cause__ or error.__context__

    def _judge(self, core: ServerProtocol, head: bytes, rest: bytes) -> HandshakeResult:
        core.receive_data(head)
        request = next(iter(core.events_received()), None)
        if not isinstance(request, Request):
            data = b"".join(core.data_to_send())
            return HandshakeResult(False, data, b"", "bad_request") if data else _bad(HTTPStatus.BAD_REQUEST)
        if self._arrival is not None and not self._arrival.has_room(request.headers):
            return _answer(plain(HTTPStatus.SERVICE_UNAVAILABLE))
        path = request.path.partition("?")[0]
        if path != WS_PATH:
            return _answer(self._pages.respond(request.method, request.path, request.headers))
        try:
            core.origins = self._allowed(request.headers)
        except MultipleValuesError:
            return _bad(HTTPStatus.BAD_REQUEST)
        response = core.accept(request)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            return HandshakeResult(
                False,
                response.serialize(),
                b"",
                "origin" if response.status_code == HTTPStatus.FORBIDDEN else "bad_request",
            )
        return HandshakeResult(True, response.serialize(), rest)

    def _allowed(self, headers: Headers) -> list[Origin | None]:
        """The origins that the library accepts: none (no browser), our host's, the setting's."""
        allowed: list[str | None] = [None]
        for origin in self._origins:
            allowed += same_origins(origin)
        if (host := headers.get("Host")) is not None:
            allowed += [*same_origins(f"http://{host}".lower()), *same_origins(f"https://{host}".lower())]
        return cast("list[Origin | None]", allowed)


def same_origins(origin: str) -> tuple[str, ...]:
    """The origin with and without the port, if that is the default of its scheme.

    `https://name` and `https://name:443` are the same origin (RFC 6454 section 4).
    """
    scheme, _, host = origin.partition("://")
    port = DEFAULT_PORTS.get(scheme)
    if port is None:
        return (origin,)
    if host.endswith(f":{port}"):
        return (origin, origin.removesuffix(f":{port}"))
    return (origin,) if _HAS_PORT.search(host) else (origin, f"{origin}:{port}")


def _bad(status: HTTPStatus) -> HandshakeResult:
    return _answer(plain(status))._replace(refused="bad_request")


def _answer(page: HttpResponse) -> HandshakeResult:
    headers = [
        ("Date", formatdate(usegmt=True)),
        ("Connection", "close"),
        ("Content-Length", str(len(page.body))),
        *page.headers,
    ]
    return HandshakeResult(False, serialize(page.status, headers, page.body), b"")


def refusal(status: HTTPStatus) -> bytes:
    """A whole HTTP response that refuses a connection."""
    return _answer(plain(status)).data
