"""`chatd user show NAME`: where a user is connected, what is delivered, and what may be wrong.

    database ── last seen, conversations, cursors ──┐
    Redis    ── list of nodes                       ├─► Report ──findings──► sentences
    nodes    ── GET /user on each admin port ───────┘

Each of the three may be away; the report then says so and shows the rest. Texts from Redis and from
admin ports may be written by anybody: they are bounded, and control characters are replaced. No
message is read.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

import orjson
import psycopg

from chatd.config import Settings
from chatd.core.session import State
from chatd.errors import ChatdError
from chatd.ids import UserId
from chatd.ops import nodes
from chatd.postgres import faults
from chatd.postgres.connection import Opener
from chatd.postgres.queries import query

CONNECT_S: Final = 5
NODE_S: Final = 3.0  # for one node to answer; all are asked at the same time
ANSWER_BYTES_MAX: Final = 1 << 20
TEXT_CHARS_MAX: Final = 200
SHOWN: Final = 20  # latest conversations
PORT_MAX: Final = 65_535
QUEUE_BYTES: Final = 65_536  # a client with more bytes waiting does not read; less may be under way

USER_REPORT: Final = query("user_report")
SEEN: Final = query("seen")
ANY_HOST: Final = ("0.0.0.0", "::", "")  # noqa: S104
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


@dataclass
class ConversationReport:
    """A conversation as the database has it, from the user's side. Times in ms since 1970."""

    c: str
    peer: str
    head: int
    floor: int
    ts: int
    delivered: int
    read: int
    unread: int
    peer_delivered: int
    peer_read: int


@dataclass
class NodeAnswer:
    """What one node answered. `error`: why it could not be asked."""

    name: str
    where: str
    error: str | None = None
    problems: dict[str, str] = field(default_factory=dict)
    degraded: dict[str, str] = field(default_factory=dict)
    held: bool = False
    sessions: list[dict[str, Any]] = field(default_factory=list)
    heads: dict[str, int] = field(default_factory=dict)  # conversation -> last seq delivered by this node


@dataclass
class Report:
    """The whole report. `database`, `redis`: why it could not be asked."""

    user: str
    seen_ms: int | None = None
    database: str | None = None
    redis: str | None = None
    nodes: list[NodeAnswer] = field(default_factory=list)
    conversations: list[ConversationReport] = field(default_factory=list)
    conversations_total: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def is_known(self) -> bool:
        """Whether the database or a node knows this user, or the database could not be asked."""
        asked = self.database is None
        return (
            not asked
            or self.seen_ms is not None
            or bool(self.conversations)
            or any(node.sessions or node.held for node in self.nodes)
        )


# ---- gathering -----------------------------------------------------------------------------------


def read(settings: Settings, conninfo: str, user: UserId) -> Report:
    """Ask all three. Raises ChatdError if none of them knows the name."""
    report = Report(user)
    _ask_database(report, conninfo, user)
    asyncio.run(_ask_nodes(report, settings, user))
    if not report.is_known:
        raise ChatdError(f"no user {user}: nobody of this name has connected here or was written to")
    report.findings = list(findings(report))
    return report


def _ask_database(report: Report, conninfo: str, user: UserId) -> None:
    try:
        with psycopg.connect(
            Opener(conninfo).conninfo("user", CONNECT_S), autocommit=True, prepare_threshold=None
        ) as conn:
            seen = psycopg.RawCursor(conn).execute(SEEN, ([user],)).fetchone()
            rows = psycopg.RawCursor(conn).execute(USER_REPORT, (user, SHOWN)).fetchall()
    except psycopg.Error as e:
        report.database = f"{faults.kind(e)}: {faults.sentence(e)}"
        return
    report.seen_ms = None if seen is None else int(seen[1])
    report.conversations = [conversation(user, row) for row in rows]
    report.conversations_total = rows[0][-1] if rows else 0


def conversation(user: str, row: Sequence[Any]) -> ConversationReport:
    """A row of sql/queries/user_report.sql, seen from `user`."""
    c, a, b, head, floor, na, nb, ts, a_delivered, a_read, a_read_n, b_delivered, b_read, b_read_n, _ = row
    sides = [(a_delivered, a_read, nb - (a_read_n or 0)), (b_delivered, b_read, na - (b_read_n or 0))]
    mine, (peer_delivered, peer_read, _) = sides if user == a else sides[::-1]
    unread = 0 if a == b or mine[1] >= head else max(0, mine[2])
    return ConversationReport(
        str(c), b if user == a else a, head, floor, ts, mine[0], mine[1], unread, peer_delivered, peer_read
    )


async def _ask_nodes(report: Report, settings: Settings, user: UserId) -> None:
    places = await _places(report, settings)
    report.nodes = list(await asyncio.gather(*(_ask(name, host, port, user) for name, host, port in places)))


async def _places(report: Report, settings: Settings) -> list[tuple[str, str, int]]:
    """(name, host, admin port) of each node that Redis lists, else of these settings."""
    if settings.redis_url is not None:
        try:
            rows = await nodes.read(settings)
            return [(row.name or row.boot, *admin_of(row)) for row in rows if row.stands and not row.left]
        except ChatdError as e:
            report.redis = _clean(str(e))
    host = "127.0.0.1" if settings.admin_host in ANY_HOST else settings.admin_host
    ports = range(settings.admin_port, settings.admin_port + settings.workers) if settings.admin_port > 0 else []
    return [(settings.node_name or f"{host}:{port}", host, port) for port in ports]


def admin_of(row: nodes.NodeRow) -> tuple[str, int]:
    """(host, port) of a node's admin port as seen from here; port 0: none, or out of reach."""
    host, port = row.admin_host or "", row.admin_port or 0
    if not 0 < port <= PORT_MAX:
        port = 0
    if host in ANY_HOST:
        return row.host or "127.0.0.1", port
    is_elsewhere = host in LOOPBACK and row.host not in (None, socket.gethostname())
    return (f"{host} of {row.host}", 0) if is_elsewhere else (host, port)


async def _ask(name: str, host: str, port: int, user: UserId) -> NodeAnswer:
    answer = NodeAnswer(_clean(name), f"{_clean(host)}:{port}" if port else _clean(host))
    if not port:
        answer.error = "its admin port cannot be reached from here: run this on its host, or set admin_host"
        return answer
    try:
        async with asyncio.timeout(NODE_S):
            facts = orjson.loads(await _get(host, port, f"/user?id={quote(user, safe='')}"))
        read_answer(answer, facts)
    except TimeoutError:
        answer.error = f"no answer within {NODE_S:g} s"
    except (OSError, UnicodeError) as e:
        answer.error = f"cannot be reached: {getattr(e, 'strerror', None) or type(e).__name__}"
    except (
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
        asyncio.IncompleteReadError,
        asyncio.LimitOverrunError,
    ):
        answer.error = "what answers there is no chatd of this release"
    return answer


async def _get(host: str, port: int, path: str) -> bytes:
    """The body of an answer with status 200; of any other, an empty one."""
    reader, writer = await asyncio.open_connection(host, port, limit=ANSWER_BYTES_MAX)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: chatd\r\nConnection: close\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if head.split(b" ", 2)[1:2] != [b"200"]:
            return b""
        parts = []
        left = ANSWER_BYTES_MAX
        while left > 0 and (part := await reader.read(left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        writer.close()


def read_answer(answer: NodeAnswer, facts: dict[str, Any]) -> None:
    """Copy what a node answered into `answer`.

    Raises ValueError, TypeError, LookupError, ArithmeticError or AttributeError if the answer has
    another shape.
    """
    node = facts["node"]
    answer.problems = {_clean(part): _clean(reason) for part, reason in node["problems"].items()}
    answer.degraded = {_clean(part): _clean(reason) for part, reason in node["degraded"].items()}
    answer.held = facts["held"] is True
    sessions: list[dict[str, Any]] = [
        {_clean(key): _plain(value) for key, value in one.items()} for one in facts["sessions"]
    ]
    for one in sessions:
        one["device"], one["state"], one["takes"] = str(one["device"]), str(one["state"]), one["takes"] is not False
        one["queue_bytes"], one["since_ms"], one["catching_up"] = (
            int(one["queue_bytes"]),
            int(one["since_ms"]),
            int(one["catching_up"]),
        )
    answer.heads = {_clean(one["c"]): int(one["head"]) for one in facts["conversations"]}
    answer.sessions = sessions  # only once all are valid


def _plain(value: object) -> object:
    if isinstance(value, int | float | bool | None):
        return value
    return _clean(value if isinstance(value, str) else str(value))


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:TEXT_CHARS_MAX])


# ---- findings ------------------------------------------------------------------------------------


def findings(report: Report) -> Iterator[str]:
    """Why this user may get nothing, the surest reason first; one sentence if nothing is wrong."""
    found = [*_outages(report), *_connections(report), *_logs(report)]
    yield from found or ["nothing is wrong: connected, and every entry was pushed and acknowledged"]


def _outages(report: Report) -> Iterator[str]:
    if report.database is not None:
        yield f"the database cannot be asked ({report.database}): conversations and cursors are not shown"
    if report.redis is not None:
        yield f"Redis cannot be asked ({report.redis}): only the nodes of these settings are shown"
    for node in report.nodes:
        if node.error is not None:
            yield f"node {node.name} at {node.where}: {node.error}; whether the user is connected there is not known"
        elif node.sessions:
            yield from (
                f"connected at node {node.name}, which does not serve: {part}: {text}"
                for part, text in node.problems.items()
            )
            yield from (f"connected at node {node.name}: {text}" for text in node.degraded.values())


def _connections(report: Report) -> Iterator[str]:
    sessions = [(node, one) for node in report.nodes for one in node.sessions]
    if not sessions:
        asked = [node for node in report.nodes if node.error is None]
        where = f"at any of {len(asked)} nodes" if len(asked) > 1 else "anywhere"
        yield f"not connected {where}" + (f", last seen {_time(report.seen_ms)}" if report.seen_ms else "")
    for node, one in sessions:
        device = f"device {one['device']} at node {node.name}"
        if one["state"] != State.LIVE.value:
            yield f"{device}: its hello is not answered yet (state {one['state']})"
        if one["takes"] is False or one["queue_bytes"] > QUEUE_BYTES:
            yield f"{device} does not read: {one['queue_bytes']} bytes wait for it"
        if one["catching_up"]:
            yield f"{device} is being brought up to date in {one['catching_up']} conversations"


def _logs(report: Report) -> Iterator[str]:
    for one in report.conversations:
        for node in report.nodes:
            if node.sessions and (got := node.heads.get(one.c)) is not None and got < one.head:
                yield f"node {node.name} has delivered up to {got} with {one.peer}; the log has {one.head}"
        if one.delivered < one.head:
            yield f"with {one.peer}: no device has acknowledged {one.delivered + 1} to {one.head}"


# ---- showing -------------------------------------------------------------------------------------


def as_json(report: Report) -> str:
    """A JSON object; keys as in Report."""
    return json.dumps(asdict(report), indent=2)


def text(report: Report) -> str:
    """Text for people. Times are in this machine's local time."""
    devices = sum(len(node.sessions) for node in report.nodes)
    now = f"{devices} device{'s' * (devices > 1)} connected" if devices else f"last seen {_time(report.seen_ms)}"
    lines = [f"{report.user}: {now}", ""]
    lines += [f"* {finding}" for finding in report.findings]
    for node in report.nodes:
        lines += ["", f"node {node.name} ({node.where}): {node.error or f'{len(node.sessions)} sessions'}"]
        lines += [f"  {_session(one)}" for one in node.sessions]
    if report.conversations:
        shown, total = len(report.conversations), report.conversations_total
        lines += ["", "conversations" + (f" (the latest {shown} of {total})" if total > shown else "")]
        lines += _table(report.conversations)
    return "\n".join(lines)


def _session(one: dict[str, Any]) -> str:
    facts = [
        f"device {one['device']}",
        str(one["state"]),
        f"from {one.get('address')}",
        f"since {_time(one['since_ms'])}",
        f"id {one.get('id')}",
        f"queue {one['queue_bytes']} bytes",
    ]
    return ", ".join(facts)


def _table(rows: Sequence[ConversationReport]) -> list[str]:
    heads = ("with", "head", "delivered", "read", "unread", "peer delivered", "peer read", "last entry", "id")
    cells = [
        (
            one.peer,
            one.head,
            one.delivered,
            one.read,
            one.unread,
            one.peer_delivered,
            one.peer_read,
            _time(one.ts),
            one.c,
        )
        for one in rows
    ]
    table = [heads, *(tuple(map(str, row)) for row in cells)]
    widths = [max(len(row[n]) for row in table) for n in range(len(heads))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    ]


def _time(ms: int | None) -> str:
    try:
        return "never" if ms is None else datetime.fromtimestamp(ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return "?"
