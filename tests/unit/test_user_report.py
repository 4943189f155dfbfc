"""What `chatd user show` makes of what it learned: why somebody gets nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import pytest

from chatd.ids import UserId
from chatd.ops import nodes, user_report
from chatd.ops.user_report import ConversationReport, NodeAnswer, Report

SESSION = {
    "id": "ab-1",
    "device": "d1",
    "address": "203.0.113.7",
    "state": "live",
    "since_ms": 0,
    "queue_bytes": 0,
    "takes": True,
    "catching_up": 0,
}
HOST = socket.gethostname()


def node(name: str = "a", **facts: Any) -> NodeAnswer:
    return NodeAnswer(name, "127.0.0.1:8081", **facts)


def session(**facts: Any) -> dict[str, Any]:
    return SESSION | facts


def conv(head: int = 5, delivered: int = 5) -> ConversationReport:
    return ConversationReport("1", "alice", head, 1, 0, delivered, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("report", "sentences"),
    [
        (Report("bob", nodes=[node(sessions=[session()])]), ["nothing is wrong"]),
        (Report("bob", nodes=[node(), node("b")]), ["not connected at any of 2 nodes"]),
        (Report("bob", seen_ms=1_000, nodes=[node()]), ["not connected anywhere, last seen 1970"]),
        (
            Report("bob", nodes=[node(error="cannot be reached")]),
            ["node a at 127.0.0.1:8081: cannot be reached", "not connected"],
        ),
        (
            Report("bob", database="away: x", nodes=[node(sessions=[session()])]),
            ["the database cannot be asked (away: x)"],
        ),
        (Report("bob", redis="no answer", nodes=[node(sessions=[session()])]), ["Redis cannot be asked (no answer)"]),
        (
            Report("bob", nodes=[node(sessions=[session()], degraded={"redis": "Redis is away"})]),
            ["connected at node a: Redis is away"],
        ),
        (
            Report("bob", nodes=[node(sessions=[session()], problems={"draining": "x"})]),
            ["connected at node a, which does not serve: draining"],
        ),
        (
            Report("bob", nodes=[node(sessions=[session(queue_bytes=900_000, takes=False)])]),
            ["device d1 at node a does not read: 900000 bytes"],
        ),
        (
            Report("bob", nodes=[node(sessions=[session(state="opening")])]),
            ["device d1 at node a: its hello is not answered"],
        ),
        (
            Report("bob", nodes=[node(sessions=[session(catching_up=3)])]),
            ["device d1 at node a is being brought up to date in 3"],
        ),
        (
            Report("bob", nodes=[node(sessions=[session()], heads={"1": 3})], conversations=[conv(delivered=3)]),
            ["node a has delivered up to 3 with alice; the log has 5", "with alice: no device has acknowledged 4 to 5"],
        ),
    ],
)
def test_each_cause_has_its_sentence(report: Report, sentences: list[str]) -> None:
    found = list(user_report.findings(report))
    assert len(found) == len(sentences), found
    for sentence, start in zip(found, sentences, strict=True):
        assert sentence.startswith(start)
    report.findings = found
    assert all(sentence in user_report.text(report) for sentence in found)
    assert json.loads(user_report.as_json(report))["findings"] == found


def test_the_first_line_says_how_many_devices_are_connected_or_when_one_last_was() -> None:
    both = [node(sessions=[session()]), node(sessions=[session(device="d2")])]
    first = [
        user_report.text(Report("bob", seen_ms=1_000, nodes=nodes)).splitlines()[0] for nodes in ([], both[:1], both)
    ]
    assert first[0].startswith("bob: last seen 19")
    assert first[1:] == ["bob: 1 device connected", "bob: 2 devices connected"]


def test_cursors_are_told_from_the_users_side() -> None:
    row = (7, "alice", "bob", 9, 1, 4, 5, 0, 9, 8, 3, 2, 1, 1, 1)
    alice, bob = (user_report.conversation(user, row) for user in ("alice", "bob"))
    assert (alice.peer, alice.delivered, alice.read, alice.unread, alice.peer_delivered, alice.peer_read) == (
        "bob",
        9,
        8,
        2,
        2,
        1,
    )
    assert (bob.peer, bob.delivered, bob.read, bob.unread, bob.peer_delivered, bob.peer_read) == (
        "alice",
        2,
        1,
        3,
        9,
        8,
    )


def test_what_a_port_answers_is_checked_and_cannot_act_on_a_terminal() -> None:
    facts: dict[str, Any] = {
        "node": {"problems": {"x\x1b[2J": "y\n"}, "degraded": {}},
        "held": True,
        "sessions": [session(device="d\x1b", extra=["\x1b"])],
        "conversations": [{"c": "1", "head": 3}],
    }
    answer = node()
    user_report.read_answer(answer, facts)
    assert answer.problems == {"x?[2J": "y?"}
    assert answer.sessions[0]["device"] == "d?"
    assert "\x1b" not in user_report.text(Report("bob", nodes=[answer]))
    for broken in (
        {},
        {"node": 1},
        facts | {"sessions": [{"device": "d"}]},
        facts | {"conversations": [{"c": "1", "head": "x"}]},
    ):
        with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
            user_report.read_answer(node(), broken)


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
FACTS: dict[str, Any] = {"node": {"problems": {}, "degraded": {}}, "held": True, "sessions": [], "conversations": []}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in SESSION.items() if key != name}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\n\r\n{}",
        b"x" * (user_report.ANSWER_BYTES_MAX + 1),
        HEAD,
        HEAD + b"\xff",
        HEAD + b"[" * 100_000,
        HEAD + b"[]",
        *(
            HEAD + json.dumps(FACTS | {"sessions": [without(name)]}).encode()
            for name in ("device", "state", "takes", "queue_bytes")
        ),
    ],
    ids=lambda answer: f"{answer[:40]!r}, {len(answer)} bytes",
)
async def test_whatever_a_port_answers_the_report_goes_on(answer: bytes) -> None:
    """Something else may listen there: a traceback took the place of the whole report."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(OSError):  # it need not take all of it
            writer.write(answer)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        said = await user_report._ask("a", "127.0.0.1", server.sockets[0].getsockname()[1], UserId("bob"))
    assert said.error == "what answers there is no chatd of this release"
    report = Report("bob", nodes=[said])
    report.findings = list(user_report.findings(report))
    assert "what answers there is no chatd" in user_report.text(report)


@pytest.mark.parametrize(
    ("admin", "host", "place"),
    [
        (["127.0.0.1", 8081], HOST, ("127.0.0.1", 8081)),
        (["127.0.0.1", 8081], "elsewhere", ("127.0.0.1 of elsewhere", 0)),
        (["0.0.0.0", 8081], "elsewhere", ("elsewhere", 8081)),
        (["10.0.0.3", 8081], "elsewhere", ("10.0.0.3", 8081)),
        (["10.0.0.3", -1], "elsewhere", ("10.0.0.3", 0)),
        (["10.0.0.3", 65_536], "elsewhere", ("10.0.0.3", 0)),
        (["0.0.0.0", 1 << 70], "elsewhere", ("elsewhere", 0)),
        ("rubbish", "elsewhere", ("elsewhere", 0)),
        ([1, "x"], None, ("127.0.0.1", 0)),
    ],
)
def test_a_nodes_admin_port_is_found_from_what_redis_has_of_it(
    admin: object, host: str | None, place: tuple[str, int]
) -> None:
    row = nodes.row("0123456789abcdef", 0, json.dumps({"name": "a", "host": host, "admin": admin}).encode(), 5_000)
    assert user_report.admin_of(row) == place
