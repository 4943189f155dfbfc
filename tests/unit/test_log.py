"""What a log line looks like, and what must never be in one."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from chatd import log as chatd_log
from chatd.errors import CloseCode
from chatd.log import CHAIN_MAX, DEPTH_MAX, EVENT_BURST, Bridge, setup
from chatd.protocol import Send
from tests.fix_log import log_restored

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
BODY = "meet me at noon"


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stream() -> Iterator[io.BytesIO]:
    """A stream that `setup` may be given; afterwards all is as it was."""
    with log_restored():
        yield io.BytesIO()


def lines(stream: io.BytesIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_the_node_is_named_where_several_write_to_one_place(stream: io.BytesIO) -> None:
    setup("info", "json", stream, node="host:8080/1")
    structlog.get_logger("chat").info("a.b")
    assert lines(stream)[0]["node"] == "host:8080/1"
    assert lines(stream)[0]["logger"] == "chat"


def test_an_event_is_one_line_of_json(stream: io.BytesIO) -> None:
    setup("info", "json", stream)
    structlog.get_logger("chat").warning(
        "session.closed", user="alice", code=CloseCode.REPLACED, reason="a\nb", up=True, lag=0.5, to=None
    )
    (line,) = lines(stream)
    assert list(line)[:4] == ["time", "level", "event", "logger"]
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning", "event": "session.closed", "logger": "chat",
        "user": "alice", "code": 4004, "reason": "a\nb", "up": True, "lag": 0.5, "to": None,
    }  # fmt: skip


@pytest.mark.parametrize(("level", "seen"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_events_below_the_level_are_not_written(stream: io.BytesIO, level: Any, seen: int) -> None:
    setup(level, "json", stream)
    log = structlog.get_logger("chat")
    for write in (log.debug, log.info, log.warning, log.error):
        write("a.b")
    assert len(lines(stream)) == seen
    assert chatd_log.DEBUG_ON is (level == "debug")


def test_auto_is_json_for_a_pipe_and_coloured_for_a_terminal(stream: io.BytesIO) -> None:
    setup("info", "auto", stream)
    structlog.get_logger("chat").info("a.b", n=1)
    assert lines(stream)[0]["n"] == 1
    terminal = Terminal()
    setup("info", "auto", terminal)
    structlog.get_logger("chat").info("a.b", n=1)
    assert b"\x1b[" in terminal.getvalue()
    assert b"a.b" in terminal.getvalue()


def test_pretty_has_no_colour_where_there_is_no_terminal(stream: io.BytesIO) -> None:
    setup("info", "pretty", stream)
    structlog.get_logger("chat").info("session.closed", user="alice")
    assert b"\x1b" not in stream.getvalue()
    assert b"session.closed" in stream.getvalue()
    assert b"user='alice'" in stream.getvalue()


def test_nothing_in_a_value_acts_on_the_terminal(stream: io.BytesIO) -> None:
    setup("info", "pretty", stream)
    try:
        raise ValueError("\x1b]0;owned\x07")
    except ValueError:
        structlog.get_logger("chat").exception("a.b", user="\x1b[2Jalice\r\nforged")
    assert not set(stream.getvalue().decode()) & set("\x1b\x07\r")
    assert b"\nforged" not in stream.getvalue()


@pytest.mark.parametrize("format", ["json", "pretty"])
@pytest.mark.parametrize(
    "facts",
    [
        {"body": BODY},
        {"Body": BODY},
        {"token": TOKEN},
        {"password": BODY},
        {"authorization": f"Bearer {TOKEN}"},
        {"frame": BODY.encode()},
        {"request": {"t": "send", "body": BODY}},
        {"requests": [{"a": [{"token": TOKEN}]}]},
        {"note": f"got {TOKEN} from alice"},
        {"url": f"postgresql://chatd:{BODY.replace(' ', '')}@db/chat"},
        {"dsn": f"host=db password='{BODY}' user=chatd"},
        {"request": Send(1, None, None, "c", BODY, False)},  # type: ignore[arg-type]
        {"data": BODY.encode()},
        {"data": bytearray(BODY.encode())},
        {"thing": type("T", (), {"__repr__": lambda _: BODY})()},
        {"error": ValueError(f"bad row\nDETAIL:  Failing row contains (1, {BODY}).")},
        {TOKEN: 1, "x": {TOKEN: 1}},
    ],
)
def test_bodies_tokens_and_passwords_never_reach_a_line(stream: io.BytesIO, format: Any, facts: dict[str, Any]) -> None:
    setup("debug", format, stream)
    structlog.get_logger("chat").info(
        "a.b", **{key: value for key, value in facts.items() if key != TOKEN}, nested=facts
    )
    text = stream.getvalue().decode()
    assert "a.b" in text
    for secret in (BODY, BODY.replace(" ", ""), TOKEN, TOKEN.split(".")[1]):
        assert secret not in text


@pytest.mark.parametrize("format", ["json", "pretty"])
def test_of_an_exception_the_first_line_and_the_places_are_told(stream: io.BytesIO, format: Any) -> None:
    setup("info", format, stream)
    try:
        try:
            raise LookupError(f"duplicate key\nDETAIL: Key (body)=({BODY})")
        except LookupError as cause:
            raise ExceptionGroup("several", [ValueError(f"one {TOKEN}"), OSError(f"two\nCONTEXT: {BODY}")]) from cause
    except ExceptionGroup:
        structlog.get_logger("chat").exception("batch.failed")
    text = stream.getvalue().decode()
    for expected in (
        "ExceptionGroup: several",
        "caused by LookupError: duplicate key",
        "holds ValueError: one ***",
        "holds OSError: two",
        "test_log.py",
    ):
        assert expected in text
    assert BODY not in text
    assert TOKEN not in text


def test_a_chain_of_exceptions_ends(stream: io.BytesIO) -> None:
    setup("info", "json", stream)
    error = ValueError("0")
    first = error
    for n in range(1, 3 * CHAIN_MAX):
        error.__cause__ = ValueError(str(n))
        error = error.__cause__
    structlog.get_logger("chat").error("a.b", exc_info=first)
    assert lines(stream)[0]["exception"].count("ValueError") == CHAIN_MAX
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    structlog.get_logger("chat").error("a.b", exc_info=one)
    assert lines(stream)[1]["exception"].count("ValueError") == 2


def test_libraries_go_the_same_way(stream: io.BytesIO) -> None:
    setup("info", "json", stream)
    logging.getLogger("psycopg").warning(
        "error connecting in %r: %s", "lane", f"postgresql://u:{BODY}@h/d\nhandle: {BODY}"
    )
    # What `database.outage` has told already
    logging.getLogger("psycopg.pool").warning("discarding closed connection: %r", object())
    logging.getLogger("alembic.migration").info("not at this level")
    logging.getLogger("websockets.server").debug("< TEXT %s", BODY)
    try:
        raise OSError("gone")
    except OSError:
        logging.getLogger("asyncio").exception("Exception in callback")
    first, second = lines(stream)
    assert (first["event"], first["logger"], first["level"]) == ("library", "psycopg", "warning")
    assert first["msg"] == "error connecting in 'lane': postgresql://u:***@h/d"
    assert (second["logger"], second["level"], second["msg"]) == ("asyncio", "error", "Exception in callback")
    assert "OSError: gone" in second["exception"]


def test_frames_that_websockets_would_show_stay_out_even_at_debug(stream: io.BytesIO) -> None:
    setup("debug", "json", stream)
    logging.getLogger("websockets.client").debug("> TEXT %s", BODY)
    logging.getLogger("alembic.migration").info("applied")
    assert [line["msg"] for line in lines(stream)] == ["applied"]


def test_setup_again_replaces_what_was(stream: io.BytesIO) -> None:
    log = structlog.get_logger("chat")
    setup("info", "json", stream)
    log.info("a.b")
    second = io.BytesIO()
    setup("error", "json", second)
    log.info("a.b")
    logging.getLogger("psycopg").error("once")
    assert len(lines(stream)) == 1
    assert [line["msg"] for line in lines(second)] == ["once"]
    assert sum(isinstance(handler, Bridge) for handler in logging.getLogger().handlers) == 1


VALUES: list[object] = [
    1 << 70,
    -(1 << 70),
    1 << 20_000,
    float("nan"),
    "\ud800",
    {"\ud800": "\udfff"},
    Path("/x\udcff"),
    {1: 2},
    {"a", "b"},
    (1, 2),
    b"x",
    object(),
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
@pytest.mark.parametrize("format", ["json", "pretty"])
def test_no_value_makes_a_log_call_fail(stream: io.BytesIO, format: Any, value: object) -> None:
    setup("info", format, stream)
    structlog.get_logger("chat").info("a.b", value=value, deep=[[[[[value]]]]])
    assert stream.getvalue().count(b"a.b") == 1


def test_what_is_long_or_deep_is_cut(stream: io.BytesIO) -> None:
    setup("info", "json", stream)
    deep: Any = "leaf"
    for _ in range(2 * DEPTH_MAX):
        deep = [deep]
    structlog.get_logger("chat").info("a.b", text="x" * 10**6, many=list(range(10**5)), deep=deep)
    assert len(stream.getvalue()) < 4_000
    assert "leaf" not in stream.getvalue().decode()


class Broken(io.BytesIO):
    def write(self, data: Any) -> int:
        raise BrokenPipeError


def test_a_stderr_that_is_gone_ends_nothing(stream: io.BytesIO) -> None:
    setup("info", "json", Broken())
    structlog.get_logger("chat").info("a.b")
    closed = io.BytesIO()
    setup("info", "json", closed)
    closed.close()
    structlog.get_logger("chat").info("a.b")


def test_of_one_event_only_so_many_lines_are_written(stream: io.BytesIO) -> None:
    setup("debug", "json", stream)
    log, before = structlog.get_logger("chat"), chatd_log.dropped()
    for n in range(EVENT_BURST + 500):
        log.info("a.b", n=n)
    log.warning("c.d")
    written = lines(stream)
    assert EVENT_BURST < len(written) < EVENT_BURST + 300, "and what the time since allows"
    assert written[-1]["event"] == "c.d", "another event has its own"
    assert chatd_log.dropped() - before == EVENT_BURST + 500 + 1 - len(written)
    for n in range(EVENT_BURST + 500):
        log.debug("e.f", n=n)
    assert len(lines(stream)) == len(written) + EVENT_BURST + 500, "whoever asks for debug wants all"


def test_the_journal_gets_each_lines_priority(stream: io.BytesIO) -> None:
    setup("debug", "journal", stream)
    log = structlog.get_logger("chat")
    for tell in (log.debug, log.info, log.warning, log.error, log.critical):
        tell("a.b")
    try:
        raise ValueError
    except ValueError:
        log.exception("a.b")
    logging.getLogger("library").warning("c")
    assert [line[:3] for line in stream.getvalue().splitlines()] == [
        b"<7>",
        b"<6>",
        b"<4>",
        b"<3>",
        b"<2>",
        b"<3>",
        b"<4>",
    ]
    assert json.loads(stream.getvalue().splitlines()[0][3:])["event"] == "a.b"


@pytest.mark.parametrize(
    ("named", "format", "begins"),
    [
        (True, "auto", b"<4>{"),
        (True, "json", b"{"),
        (False, "auto", b"{"),
        (False, "journal", b"<4>{"),
        (None, "auto", b"{"),
    ],
)
def test_systemd_says_by_a_variable_which_stream_it_reads(
    stream: io.BytesIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool | None, format: Any, begins: bytes
) -> None:
    path = tmp_path / "out"
    path.touch()
    at = path.stat()
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if named is not None:
        monkeypatch.setenv("JOURNAL_STREAM", f"{at.st_dev}:{at.st_ino if named else at.st_ino + 1}")
    with path.open("wb") as out:
        setup("info", format, out)
        structlog.get_logger("chat").warning("a.b")
    assert path.read_bytes().startswith(begins)
