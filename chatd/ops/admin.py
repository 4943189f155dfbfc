"""Serves the admin port: metrics, liveness and readiness over HTTP, on loopback by default.

    GET /metrics    Prometheus' text format
    GET /healthz    200 "ok": the event loop runs
    GET /readyz     200 {"ready":true}, or 503 {"ready":false,"reasons":{part: sentence}};
                    with "degraded" if another part is away
    GET /user?id=   200 what this node knows of a user: sessions, cursors, queues, but no message;
                    400 if that cannot be a user id

It handles one request per connection, on asyncio's streams. Only the first line of a request
matters; the rest is read and ignored. Everything is bounded: connections at once, bytes of a head,
the time to read it, to answer and to send the answer, and how often the metrics are written out.

Rejected: prometheus_client's own server. It starts a thread per connection without a bound or a
deadline, and it answers while the event loop hangs, which is what a health check must find out.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import structlog
from prometheus_client import CONTENT_TYPE_LATEST

from chatd.ids import UserId, user_id
from chatd.loop import ending
from chatd.wire import http
from chatd.wire.http import HttpResponse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from chatd.metrics import Metrics

log = structlog.get_logger("admin")

HEAD_BYTES_MAX: Final = 8_192
CONNECTIONS_MAX: Final = 32
REQUEST_S: Final = 5.0  # for a client to send its request, and again to take the answer
# Between two expositions: each takes 1.5 to 3 ms of the loop. Without a bound, 8 clients that asked
# in a loop delayed pings to 13 ms.
METRICS_S: Final = 0.05
# For all checks of readiness together. Probes have a deadline of their own; that of Kubernetes is
# 1 s by default.
READY_S: Final = 0.45
HEADERS: Final = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"), ("Connection", "close"))


class Admin:
    """The server of the admin port.

    `ready` returns what keeps this node from serving, part -> sentence; empty: it is ready.
    `degraded` returns what is away although the node serves. `about` returns what this node knows
    of a user.
    """

    def __init__(
        self,
        metrics: Metrics,
        ready: Callable[[], Awaitable[dict[str, str]]],
        degraded: Callable[[], dict[str, str]] = dict,
        about: Callable[[UserId], dict[str, object]] = lambda user: {},
        *,
        request_s: float = REQUEST_S,
        ready_s: float = READY_S,
    ) -> None:
        self._metrics = metrics
        self._ready, self._degraded, self._about = ready, degraded, about
        self._request_s = request_s
        self._ready_s = ready_s
        self._exposing: asyncio.Future[bytes] | None = None  # the next exposition, which all who ask now share
        self._exposed_at = float("-inf")
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=HEAD_BYTES_MAX)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close the port and its connections. Idempotent."""
        if self._server is not None:
            self._server.close()
        await ending.cancelled(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._request_s):
                head = await reader.readuntil(b"\r\n\r\n")
            answer = await self._answer(head)
            if writer.transport.is_closing():
                return  # the client has left; uvloop's transport would raise
            writer.write(_serialize(answer, with_body=not head.startswith(b"HEAD ")))
            async with asyncio.timeout(self._request_s):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except asyncio.LimitOverrunError:
            writer.write(_serialize(http.plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)))
            writer.close()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass  # the client was too slow, or left
        except Exception:
            log.exception("admin.failed")
        finally:
            if not writer.is_closing() or writer.transport.get_write_buffer_size():
                writer.transport.abort()

    async def _answer(self, head: bytes) -> HttpResponse:
        request = http.request_line(head)
        if request is None:
            return http.plain(HTTPStatus.BAD_REQUEST)
        if request.method.decode("latin-1") not in http.METHODS:
            return http.plain(HTTPStatus.METHOD_NOT_ALLOWED)
        match request.path:
            case b"/metrics":
                return HttpResponse(
                    HTTPStatus.OK, (("Content-Type", CONTENT_TYPE_LATEST),), await asyncio.shield(self._exposition())
                )
            case b"/healthz":
                return HttpResponse(HTTPStatus.OK, (("Content-Type", http.TEXT),), b"ok\n")
            case b"/readyz":
                return await self._readiness()
            case b"/user":
                return self._user(request.query)
            case _:
                return http.plain(HTTPStatus.NOT_FOUND)

    def _exposition(self) -> asyncio.Future[bytes]:
        """The metrics as of a moment after this call. Calls before that moment share them."""
        if self._exposing is None:
            loop = asyncio.get_running_loop()
            self._exposing = loop.create_future()
            loop.call_at(max(loop.time(), self._exposed_at + METRICS_S), self._expose, self._exposing)
        return self._exposing

    def _expose(self, waiting: asyncio.Future[bytes]) -> None:
        self._exposing, self._exposed_at = None, asyncio.get_running_loop().time()
        try:
            waiting.set_result(self._metrics.exposition())
        except Exception as e:
            waiting.set_exception(e)

    async def _readiness(self) -> HttpResponse:
        try:
            async with asyncio.timeout(self._ready_s):
                reasons = await self._ready()
        except TimeoutError:
            reasons = {"checks": f"not done within {self._ready_s:g} s"}
        except Exception:
            log.exception("readiness.failed")
            reasons = {"checks": "failed; see the log"}
        facts: dict[str, object] = {"ready": False, "reasons": reasons} if reasons else {"ready": True}
        if degraded := self._degraded():
            facts["degraded"] = degraded
        return http.json(HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK, facts)

    def _user(self, query: bytes) -> HttpResponse:
        try:
            id = user_id(parse_qs(query.decode("ascii"), max_num_fields=4, errors="strict")["id"][0])
        except (KeyError, ValueError):  # UnicodeDecodeError is a ValueError
            return http.plain(HTTPStatus.BAD_REQUEST)
        return http.json(HTTPStatus.OK, self._about(id))


def _serialize(page: HttpResponse, *, with_body: bool = True) -> bytes:
    allow = [("Allow", "GET, HEAD")] if page.status is HTTPStatus.METHOD_NOT_ALLOWED else []
    headers = [*page.headers, ("Content-Length", str(len(page.body))), *allow, *HEADERS]
    return http.serialize(page.status, headers, page.body if with_body else b"")
