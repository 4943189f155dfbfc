"""The admin port over real sockets, without a database."""

from __future__ import annotations

import asyncio
import functools
import json
from typing import TYPE_CHECKING, ParamSpec

import pytest

from chatd.metrics import Metrics
from chatd.ops import admin
from chatd.ops.admin import CONNECTIONS_MAX, HEAD_BYTES_MAX, Admin
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


P = ParamSpec("P")
DEADLINE_S = 20.0  # of a test: what should have been dropped by then was not


def bounded(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    @functools.wraps(test)
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await test(*args, **kwargs)

    return run


class Node:
    """An admin server whose readiness a test sets."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.reasons: dict[str, str] = {}
        self.degraded: dict[str, str] = {}
        self.check: Callable[[], Awaitable[None]] | None = None
        self.admin = Admin(self.metrics, self._ready, lambda: self.degraded, request_s=0.3, ready_s=0.2)
        self.port = 0

    async def _ready(self) -> dict[str, str]:
        if self.check is not None:
            await self.check()
        return self.reasons

    async def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *headers = head.decode().split("\r\n")
        return int(status.split()[1]), dict(line.split(": ", 1) for line in headers), body

    async def get(self, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        return await self.ask(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    node = Node()
    node.port = await node.admin.start("127.0.0.1", 0)
    yield node
    await node.admin.stop()


async def test_healthz_says_that_the_loop_runs(node: Node) -> None:
    node.reasons = {"database": "gone"}  # liveness does not depend on it: a restart would not help
    status, headers, body = await node.get("/healthz")
    assert (status, body) == (200, b"ok\n")
    assert headers["Content-Length"] == "3"
    assert headers["Connection"] == "close"


async def test_metrics_are_in_prometheus_text_format(node: Node) -> None:
    node.metrics.sends += 7
    node.metrics.commit_s.observe(0.003)
    status, headers, body = await node.get("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert b"chatd_sends_total 7.0\n" in body
    assert b'chatd_commit_seconds_bucket{le="0.005"} 1.0\n' in body
    assert len(body) == int(headers["Content-Length"])


@bounded
async def test_who_asks_for_the_metrics_at_one_time_shares_them(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is milliseconds of the loop.

    What is shared was made after everybody had asked: nobody gets an older one.
    """
    made: list[float] = []
    real = node.metrics.exposition

    def exposition() -> bytes:
        made.append(node.metrics.sends)
        return real()

    monkeypatch.setattr(node.metrics, "exposition", exposition)
    monkeypatch.setattr(admin, "METRICS_S", 1.0)
    await node.get("/metrics")
    node.metrics.sends += 1
    answers = await asyncio.gather(*(node.get("/metrics") for _ in range(20)))
    assert all(b"chatd_sends_total 1.0\n" in body for _, _, body in answers)
    assert made == [0, 1]


async def test_readyz_gives_the_reasons(node: Node) -> None:
    status, headers, body = await node.get("/readyz")
    assert (status, json.loads(body)) == (200, {"ready": True})
    assert headers["Content-Type"] == "application/json"
    node.reasons = {"database": "cannot be reached", "draining": "on its way out"}
    status, _, body = await node.get("/readyz")
    assert (status, json.loads(body)) == (503, {"ready": False, "reasons": node.reasons})


@bounded
async def test_a_check_that_hangs_or_fails_is_not_ready(node: Node) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    async def fail() -> None:
        raise RuntimeError("secret detail")

    node.check = hang
    status, _, body = await node.get("/readyz")
    assert (status, list(json.loads(body)["reasons"])) == (503, ["checks"])
    node.check = fail
    status, _, body = await node.get("/readyz")
    assert status == 503
    assert b"secret" not in body
    assert (await node.get("/healthz"))[0] == 200


async def test_head_has_no_body_and_other_methods_are_refused(node: Node) -> None:
    status, headers, body = await node.get("/healthz", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "3", b"")
    status, headers, _ = await node.get("/healthz", "POST")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path", ["/", "/metrics/", "/METRICS", "//metrics", "/../metrics", "/%6detrics", "*", "http://x/metrics"]
)
async def test_everything_else_is_404(node: Node, path: str) -> None:
    assert (await node.get(path))[0] == 404


async def test_a_query_does_not_matter(node: Node) -> None:
    assert (await node.get("/healthz?verbose=1"))[0] == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /healthz\r\n\r\n",
        b"GET /healthz HTTP/2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"GET  /healthz HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused(node: Node, request_: bytes) -> None:
    assert (await node.ask(request_))[0] == 400


async def test_a_head_over_the_bound_is_refused(node: Node) -> None:
    assert (await node.ask(b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 2 * HEAD_BYTES_MAX))[0] == 431


@bounded
async def test_a_client_that_sends_no_whole_request_is_dropped(node: Node) -> None:
    for piece in (b"", b"GET /healthz HTTP/1.1\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(piece)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()


@bounded
async def test_a_client_that_does_not_take_its_answer_is_dropped(node: Node) -> None:
    # An answer larger than any socket's buffers
    node.metrics.connections_closed = {(f"reason {n}", "0"): n for n in range(100_000)}
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port, limit=1)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    (task,) = await some(node)
    await asyncio.wait([task])
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readexactly(1 << 30)
    writer.close()


async def some(node: Node) -> list[asyncio.Task[None]]:
    await until(lambda: node.admin._tasks)
    return list(node.admin._tasks)


@bounded
async def test_connections_are_bounded_and_come_free_again(node: Node) -> None:
    node.admin._request_s = 60
    crowd = [await asyncio.open_connection("127.0.0.1", node.port) for _ in range(CONNECTIONS_MAX)]
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    assert len(node.admin._tasks) == CONNECTIONS_MAX
    for _, other in [*crowd, (reader, writer)]:
        other.close()
    for task in list(node.admin._tasks):
        await asyncio.wait([task])
    assert (await node.get("/healthz"))[0] == 200


@bounded
async def test_stop_ends_what_is_open(node: Node) -> None:
    node.admin._request_s = 60
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    await some(node)
    await node.admin.stop()
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()
    with pytest.raises(OSError, match=r"refused|Connect"):
        await asyncio.open_connection("127.0.0.1", node.port)
    await node.admin.stop()
