"""Structured logs on stderr: one event per line, JSON for machines or aligned text for a terminal.

    log = structlog.get_logger("chat")              the module's name
    log.info("session.closed", user=..., code=...)  event = noun.verb; facts as keys, not sentences

Events of structlog and the libraries' `logging` records alike pass `mask` before they are rendered.
`mask` is the last line of defence: callers must not log a message or a token. It knows a closed set
of types and shows any other object as its type's name, so that no `repr` shows a frame. It keeps
the first line of an exception, because PostgreSQL's DETAIL lines quote rows. Libraries log from
warning on (info if our level is debug), because below that websockets shows whole frames.

An event below the level costs a method call. Where even that is too much, check `DEBUG_ON` (through
the module, after `setup`). A line costs some 20 us, and clients can cause many of them. So each
event has a token bucket (`EVENT_PER_S`), and a write waits for no reader: what a pipe does not take
waits in a bounded queue (log_writer.py). Dropped lines are counted, and `log.dropped` reports them.
A closed stderr loses events and does nothing else. Events at debug have no bucket, so that all of
them are there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import traceback
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

import orjson
import structlog

from chatd import log_writer
from chatd.config import mask_password
from chatd.core.rate_limit import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from structlog.typing import EventDict, Processor

DEBUG_ON = False  # set by `setup`

MASKED: Final = "***"
SECRET_KEYS: Final = frozenset(
    {"authorization", "body", "cookie", "frame", "k", "password", "payload", "secret", "token"}
)
TEXT_CHARS_MAX: Final = 2_000
DEPTH_MAX: Final = 4
ITEMS_MAX: Final = 50
CHAIN_MAX: Final = 10  # exceptions of a chain or group that are shown
EVENT_PER_S: Final = 200.0  # lines of one event at info and above: 0.4 % of a core
EVENT_BURST: Final = 2_000  # a drain ends all sessions of a node at once
EVENTS_MAX: Final = 1_000  # buckets; the names of events are in the code, so there are fewer

_TOKEN = re.compile(r"eyJ[\w-]{6,}\.[\w-]+(?:\.[\w-]*)?")
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def setup(
    level: Literal["debug", "info", "warning", "error"],
    format: Literal["auto", "json", "pretty", "journal"],
    stream: BinaryIO | None = None,
    *,
    node: str | None = None,
) -> None:
    """Configure structlog and `logging` for this process. A second call replaces the first.

    `stream`: stderr's bytes by default. `node`: a name on each line, if several nodes share a log.
    """
    global DEBUG_ON
    out = sys.stderr.buffer if stream is None else stream
    terminal, put = out.isatty(), _way_out(out)
    pretty = format == "pretty" or (format == "auto" and terminal)
    output = _JournalOutput if format == "journal" or (format == "auto" and is_journal(out)) else _Output
    DEBUG_ON = level == "debug"
    structlog.configure(
        processors=[
            _Buckets(),
            structlog.processors.add_log_level,
            _name_logger if node is None else _name_node(node),
            mask,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _pretty(terminal) if pretty else _to_json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *names: output(put, *names),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, Bridge):
            root.removeHandler(handler)
    root.addHandler(Bridge())
    root.setLevel(logging.INFO if DEBUG_ON else max(_LEVELS[level], logging.WARNING))
    # The pool logs each connection that it cannot open or finds ended; `database.outage` has
    # reported that once, with its reason.
    logging.getLogger("psycopg.pool").setLevel(logging.INFO if DEBUG_ON else logging.ERROR)


class _Output:
    """Writes lines. Never raises: a log that cannot be written must not end the node."""

    __slots__ = ("_put", "name")

    def __init__(self, put: Callable[[bytes], None], name: str = "") -> None:
        self._put = put
        self.name = name

    def write(self, line: bytes) -> None:
        self._put(line + b"\n")

    debug = info = warning = error = critical = exception = write


def _way_out(stream: BinaryIO) -> Callable[[bytes], None]:
    """What takes a line: the stream itself, or a thread if a write could wait for a reader."""
    try:
        fd = stream.fileno()
        if log_writer.may_block(fd):
            return log_writer.writer(fd).put
    except (OSError, ValueError):  # not a file, such as a test's stream
        pass

    def put(line: bytes) -> None:
        try:
            stream.write(line)
            stream.flush()
        except (OSError, ValueError):  # the reader has closed its end, or the stream is closed
            pass

    return put


def dropped() -> int:
    """Lines dropped so far: over their bucket, or because the log's reader was too slow."""
    return _Buckets.dropped + log_writer.dropped()


class _Buckets:
    """Drops events of one name beyond their bucket."""

    dropped = 0  # of the process

    def __init__(self) -> None:
        self._of: dict[str, TokenBucket] = {}

    def __call__(self, logger: Any, method: str, event: EventDict) -> EventDict:
        if method == "debug":
            return event
        name = event["event"]
        bucket = self._of.get(name)
        if bucket is None:
            if len(self._of) >= EVENTS_MAX:
                self._of.clear()
            bucket = self._of[name] = TokenBucket(EVENT_PER_S, EVENT_BURST)
        if bucket.take(time.monotonic()):
            return event
        _Buckets.dropped += 1
        raise structlog.DropEvent


class _JournalOutput(_Output):
    """Begins each line with its priority (sd-daemon(3)), by which `journalctl -p` selects lines."""

    __slots__ = ()

    def debug(self, line: bytes) -> None:
        self.write(b"<7>" + line)

    def info(self, line: bytes) -> None:
        self.write(b"<6>" + line)

    def warning(self, line: bytes) -> None:
        self.write(b"<4>" + line)

    def error(self, line: bytes) -> None:
        self.write(b"<3>" + line)

    def critical(self, line: bytes) -> None:
        self.write(b"<2>" + line)

    exception = error


def is_journal(stream: BinaryIO) -> bool:
    """Whether systemd's journal reads this stream.

    JOURNAL_STREAM names the stream that it reads. The variable is inherited, also by processes
    whose stderr is another stream.
    """
    try:
        at = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{at.st_dev}:{at.st_ino}"


class Bridge(logging.Handler):
    """Passes the libraries' records to structlog.

    Only their first line, because asyncio's further lines show the arguments of callbacks.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            exc_info = record.exc_info if record.exc_info and record.exc_info[1] else None
            structlog.get_logger(record.name).log(
                record.levelno, "library", msg=text.partition("\n")[0], exc_info=exc_info
            )
        except Exception:
            self.handleError(record)


# ---- processors ----------------------------------------------------------------------------------


def _name_logger(logger: Any, method: str, event: EventDict) -> EventDict:
    event["logger"] = logger.name
    return event


def _name_node(node: str) -> Processor:
    def name(logger: Any, method: str, event: EventDict) -> EventDict:
        event["node"] = node
        return _name_logger(logger, method, event)

    return name


def mask(logger: Any, method: str, event: EventDict) -> EventDict:
    """Remove what no log may have, and turn each value into plain JSON.

    `exc_info` becomes the text `exception`.
    """
    error = _error_of(event.pop("exc_info", None))
    shown: EventDict = {key: _masked(key, value, 0) for key, value in event.items()}
    if error is not None:
        shown["exception"] = "\n".join(_printable(_mask_text(line)) for line in _traceback(error))
    return shown


def _masked(key: object, value: object, depth: int) -> object:
    if isinstance(key, str) and key.lower() in SECRET_KEYS and value is not None:
        return MASKED
    match value:
        case None | bool() | float():
            return value
        case int():
            return int(value) if abs(value) < 1 << 63 else MASKED  # orjson's bound; an IntEnum becomes a number
        case str():
            return _mask_text(value)
        case PurePath():
            return _mask_text(str(value))
        case BaseException():
            return _mask_text(_first_line(value))
        case _ if depth == DEPTH_MAX or hasattr(value, "_fields"):  # a NamedTuple may be a request, with its body
            return f"<{type(value).__name__}>"
        case dict():
            items = list(value.items())[:ITEMS_MAX]
            return {_mask_text(str(name)): _masked(name, item, depth + 1) for name, item in items}
        case list() | tuple() | set() | frozenset():
            return [_masked(None, item, depth + 1) for item in list(value)[:ITEMS_MAX]]
        case _:
            return f"<{type(value).__name__}>"


def _mask_text(text: str) -> str:
    if len(text) > TEXT_CHARS_MAX:
        text = text[:TEXT_CHARS_MAX] + "..."
    if "eyJ" in text:
        text = _TOKEN.sub(MASKED, text)
    if "://" in text or "password" in text:
        text = mask_password(text)
    return text


def _printable(text: str) -> str:
    """Show control characters as escapes; terminals get the text of exceptions as it is."""
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


# ---- exceptions ----------------------------------------------------------------------------------


def _error_of(exc_info: object) -> BaseException | None:
    match exc_info:
        case BaseException():
            return exc_info
        case (_, BaseException() as error, _):
            return error
        case True:
            return sys.exc_info()[1]
        case _:
            return None


def _first_line(error: BaseException) -> str:
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _traceback(error: BaseException) -> Iterator[str]:
    """The lines of a traceback, with only the first line of each exception's message."""
    waiting: list[tuple[str, BaseException]] = [("", error)]
    shown: set[int] = set()
    while waiting and len(shown) < CHAIN_MAX:
        how, one = waiting.pop(0)
        if id(one) in shown:
            continue
        shown.add(id(one))
        yield how + _first_line(one)
        yield from _frames(one.__traceback__)
        if one.__cause__ is not None:
            waiting.append(("caused by ", one.__cause__))
        elif one.__context__ is not None and not one.__suppress_context__:
            waiting.append(("while handling ", one.__context__))
        if isinstance(one, BaseExceptionGroup):
            waiting.extend(("holds ", part) for part in one.exceptions)


def _frames(tb: TracebackType | None) -> Iterator[str]:
    for frame in traceback.extract_tb(tb):
        yield f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}: {frame.line}'


# ---- rendering -----------------------------------------------------------------------------------


def _to_json(logger: Any, method: str, event: EventDict) -> bytes:
    """JSON with `time`, `level`, `event`, `logger` first, as people read it, too."""
    line = {key: event.pop(key) for key in ("time", "level", "event", "logger")}
    line.update(event)
    try:
        return orjson.dumps(line)
    except TypeError:  # a lone surrogate, which json writes as an escape
        return json.dumps(line).encode()


def _pretty(colors: bool) -> Processor:
    """Aligned text; values with spaces or control characters are shown as Python literals."""
    renderer = structlog.dev.ConsoleRenderer(colors=colors, timestamp_key="time", repr_native_str=True, pad_event_to=24)

    def render(logger: Any, method: str, event: EventDict) -> bytes:
        event["time"] = event["time"][11:23] + "Z"
        return renderer(logger, method, event).encode("utf-8", "backslashreplace")

    return render
