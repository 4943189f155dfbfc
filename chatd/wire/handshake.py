"""The opening handshake and plain HTTP, by websockets' sans-I/O core, which is dropped afterwards.

Pure: bytes in, a HandshakeResult out.

    bytes ──feed──► None (not complete yet)
                  | HandshakeResult(outcome, data to send, bytes after the request)

The head of the request is collected here, up to `HEAD_BYTES_MAX`, and only a whole head goes to the
library. So bytes that a client sends after it in the same segment are not lost in the library's
buffers.

A request that is no upgrade is answered, and another may follow on the same connection, up to
`REQUESTS_MAX`: a page is several files. The connection closes after a request that was refused,
that asks for the close, or is of HTTP/1.0. It also closes behind a trusted proxy: the proxy's next
request may be another client's, and a connection is counted by one address.
"""

from __future__ import annotations

import enum
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
# Plain HTTP requests of one connection. The page is some ten, and a browser opens up to six
# connections.
REQUESTS_MAX: Final = 32
KEEP_ALIVE_S: Final = 5  # from a response to the end of the next request's head
WS_PATH: Final = "/ws"
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HAS_PORT: Final = re.compile(r":[0-9]+$")  # does not match `[::1]`


class HttpHandler(Protocol):
    """Answers plain HTTP requests. A response to HEAD is that to GET: its body is not sent."""

    def respond(self, method: str, path: str, headers: Headers) -> HttpResponse: ...


class Afterwards(enum.Enum):
    """What the connection is after a request."""

    UPGRADED = "upgraded"  # a WebSocket
    KEPT = "kept"  # the next request follows: feed the same handshake
    CLOSED = "closed"


class HandshakeResult(NamedTuple):
    """Send `data`; `afterwards` says how to go on.

    `rest`: the bytes after the request, of a frame or the next request. `refused` is the reason for
    metric and log.
    """

    afterwards: Afterwards
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
    """The requests of one connection, up to its upgrade or its end.

    `origins`: those allowed besides the server's own host. `arrival`: set if a trusted proxy
    connected.
    """

    __slots__ = ("_arrival", "_head", "_left", "_origins", "_pages")

    def __init__(self, pages: HttpHandler, origins: Collection[str], arrival: Arrival | None = None) -> None:
        self._head = b""
        self._left = REQUESTS_MAX
        self._pages = pages
        self._origins = origins
        self._arrival = arrival

    def feed(self, data: bytes) -> HandshakeResult | None:
        """Take more bytes; gives the result once the head is whole.

        After KEPT it takes the next request, beginning with `rest`; else it is finished.
        """
        if self._arrival is not None and not self._head:
            try:
                behind = self._arrival.preface(data)
            except Malformed:
                return HandshakeResult(Afterwards.CLOSED, b"", b"", "proxy_header")
            if behind is None:
                return None
            data = behind
        # Only new bytes are searched for the end of the head, so one byte at a time costs no more.
        seen = max(len(self._head) - 3, 0)
        self._head += data
        end = self._head.find(b"\r\n\r\n", seen)
        if end < 0 or end > HEAD_BYTES_MAX:
            return _bad(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) if len(self._head) > HEAD_BYTES_MAX else None
        head, rest, self._head = self._head[: end + 4], self._head[end + 4 :], b""
        return self._complete(head, rest)

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
            if not data:
                return _bad(HTTPStatus.BAD_REQUEST)
            return HandshakeResult(Afterwards.CLOSED, data, b"", "bad_request")
        if self._arrival is not None and not self._arrival.has_room(request.headers):
            return _closing(plain(HTTPStatus.SERVICE_UNAVAILABLE))
        path = request.path.partition("?")[0]
        if path != WS_PATH:
            return self._plain(request, rest)
        try:
            core.origins = self._allowed(request.headers)
        except MultipleValuesError:
            return _bad(HTTPStatus.BAD_REQUEST)
        response = core.accept(request)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            return HandshakeResult(
                Afterwards.CLOSED,
                response.serialize(),
                b"",
                "origin" if response.status_code == HTTPStatus.FORBIDDEN else "bad_request",
            )
        return HandshakeResult(Afterwards.UPGRADED, response.serialize(), rest)

    def _plain(self, request: Request, rest: bytes) -> HandshakeResult:
        """The answer to a request that is no upgrade."""
        self._left -= 1
        page = self._pages.respond(request.method, request.path, request.headers)
        is_kept = self._arrival is None and self._left > 0 and is_persistent(request)
        is_kept = is_kept and page.status is not HTTPStatus.METHOD_NOT_ALLOWED
        data = _response(page, is_kept=is_kept, is_head=request.method == "HEAD")
        return (
            HandshakeResult(Afterwards.KEPT, data, rest) if is_kept else HandshakeResult(Afterwards.CLOSED, data, b"")
        )

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


def is_persistent(request: Request) -> bool:
    """Whether the client may send another request on this connection (RFC 9112, 9.3)."""
    options = ",".join(request.headers.get_all("Connection")).lower().split(",")
    return request.protocol == "HTTP/1.1" and "close" not in (option.strip() for option in options)


def _bad(status: HTTPStatus) -> HandshakeResult:
    return _closing(plain(status))._replace(refused="bad_request")


def _closing(page: HttpResponse) -> HandshakeResult:
    return HandshakeResult(Afterwards.CLOSED, _response(page, is_kept=False, is_head=False), b"")


def _response(page: HttpResponse, *, is_kept: bool, is_head: bool) -> bytes:
    """The length is that of the body, also where it is not sent; a 304 has none (RFC 9110, 8.6)."""
    keep_alive = (("Keep-Alive", f"timeout={KEEP_ALIVE_S}"),) if is_kept else ()
    length = () if page.status is HTTPStatus.NOT_MODIFIED else (("Content-Length", str(len(page.body))),)
    headers = [
        ("Date", formatdate(usegmt=True)),
        ("Connection", "keep-alive" if is_kept else "close"),
        *keep_alive,
        *length,
        *page.headers,
    ]
    return serialize(page.status, headers, b"" if is_head else page.body)


def refusal(status: HTTPStatus) -> bytes:
    """A whole HTTP response that refuses a connection."""
    return _closing(plain(status)).data
