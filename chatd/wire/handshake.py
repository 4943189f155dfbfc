"""The opening handshake and plain HTTP, by websockets' sans-I/O core, which is let go afterwards.

Pure: bytes in, an Answer out.

    bytes ──feed──► None (more, please) | Answer(upgraded, data to send, bytes that came behind the request)

The request's head is gathered here, up to `HEAD_BYTES_MAX`, and only a whole head goes to the
library: so what a client sends behind it in the same segment is not lost in the library's buffers.
One request a connection: whatever is not an upgrade is answered and closed.
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
from chatd.wire.http import Page, plain, serialize
from chatd.wire.proxy_protocol import Malformed

HEAD_BYTES_MAX: Final = 16_384
WS_PATH: Final = "/ws"
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HAS_PORT: Final = re.compile(r":[0-9]+$")  # not that of `[::1]`


class Pages(Protocol):
    """Who answers plain HTTP."""

    def respond(self, method: str, path: str, headers: Headers) -> Page: ...


class Answer(NamedTuple):
    """`upgraded`: a WebSocket from now on, and `rest` is its first bytes.

    Else: send `data` and close; `refused` says why, for metric and log.
    """

    upgraded: bool
    data: bytes
    rest: bytes
    refused: str = ""


class _Core(ServerProtocol):
    """The library's, with our subprotocol.

    As a method: one that is handed over is kept bound in the instance, a cycle for the collector.
    """

    def select_subprotocol(self, subprotocols: Sequence[Subprotocol]) -> Subprotocol | None:
        """Ours if offered; none if none was offered (a client that only knows the page); anything
        else is another protocol.
        """
        if not subprotocols:
            return None
        if SUBPROTOCOL in subprotocols:
            return Subprotocol(SUBPROTOCOL)
        raise NegotiationError(f"invalid subprotocol; expected {SUBPROTOCOL}")


class Handshake:
    """State of one handshake.

    `origins`: allowed besides the server's own host; `arrival`: of a connection that a proxy makes.
    """

    __slots__ = ("_arrival", "_head", "_origins", "_pages")

    def __init__(self, pages: Pages, origins: Collection[str], arrival: Arrival | None = None) -> None:
        self._head = b""
        self._pages = pages
        self._origins = origins
        self._arrival = arrival

    def feed(self, data: bytes) -> Answer | None:
        """More bytes; an Answer once the head is whole. Call it no more after that."""
        if self._arrival is not None and not self._head:
            try:
                behind = self._arrival.preface(data)
            except Malformed:
                return Answer(False, b"", b"", "proxy_header")
            if behind is None:
                return None
            data = behind
        # The end of the head is not in what was looked through before: a byte at a time costs no
        # more
        seen = max(len(self._head) - 3, 0)
        self._head += data
        end = self._head.find(b"\r\n\r\n", seen)
        if end < 0 or end > HEAD_BYTES_MAX:
            return _bad(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) if len(self._head) > HEAD_BYTES_MAX else None
        return self._complete(self._head[: end + 4], self._head[end + 4 :])

    def _complete(self, head: bytes, rest: bytes) -> Answer:
        core = _Core()
        try:
            return self._judge(core, head, rest)
        finally:
            # What is left in a circle would wait for the collector: a generator that holds `core`,
            # which holds it, 12 KB; and of a refused one the error, whose traceback holds the
            # frames up to the connection.
            core.parser.close()
            error: BaseException | None = core.handshake_exc
            while error is not None:
                error.__traceback__ = None
                error = error.__cause__ or error.__context__

    def _judge(self, core: ServerProtocol, head: bytes, rest: bytes) -> Answer:
        core.receive_data(head)
        request = next(iter(core.events_received()), None)
        if not isinstance(request, Request):
            data = b"".join(core.data_to_send())
            return Answer(False, data, b"", "bad_request") if data else _bad(HTTPStatus.BAD_REQUEST)
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
            return Answer(
                False,
                response.serialize(),
                b"",
                "origin" if response.status_code == HTTPStatus.FORBIDDEN else "bad_request",
            )
        return Answer(True, response.serialize(), rest)

    def _allowed(self, headers: Headers) -> list[Origin | None]:
        """Origins for the library to check: none at all (no browser), our own host's, and those of
        the setting.
        """
        allowed: list[str | None] = [None]
        for origin in self._origins:
            allowed += same_origins(origin)
        if (host := headers.get("Host")) is not None:
            allowed += [*same_origins(f"http://{host}".lower()), *same_origins(f"https://{host}".lower())]
        return cast("list[Origin | None]", allowed)


def same_origins(origin: str) -> tuple[str, ...]:
    """The origin, with and without the port if that is its scheme's own:

    `https://name` and `https://name:443` are one (RFC 6454 4).
    """
    scheme, _, host = origin.partition("://")
    port = DEFAULT_PORTS.get(scheme)
    if port is None:
        return (origin,)
    if host.endswith(f":{port}"):
        return (origin, origin.removesuffix(f":{port}"))
    return (origin,) if _HAS_PORT.search(host) else (origin, f"{origin}:{port}")


def _bad(status: HTTPStatus) -> Answer:
    return _answer(plain(status))._replace(refused="bad_request")


def _answer(page: Page) -> Answer:
    headers = [
        ("Date", formatdate(usegmt=True)),
        ("Connection", "close"),
        ("Content-Length", str(len(page.body))),
        *page.headers,
    ]
    return Answer(False, serialize(page.status, headers, page.body), b"")


def refusal(status: HTTPStatus) -> bytes:
    """A whole HTTP answer for a connection that there is no room for."""
    return _answer(plain(status)).data
