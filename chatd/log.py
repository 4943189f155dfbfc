"""Structured logs on stderr: one event a line, JSON for machines or aligned text for a terminal.

    log = structlog.get_logger("chat")             the module's name
    log.info("session.closed", user=..., code=...)  event = noun.verb; facts as keys; never a sentence with values in it

Everything takes one way out: structlog's events and the libraries' `logging` records alike pass
`mask` before they are rendered. That is the last line of defence and no licence: who logs names
facts, never a message or a token. It knows a closed set of types and shows any other object as its
type's name, so that no `repr` lets a frame out; of an exception it keeps the first line, as
PostgreSQL's DETAIL lines quote rows. Libraries are held at warning (info when ours is debug): below
it, websockets shows whole frames.

An event below the level costs a method call. Where even that is too much, look at `DEBUG_ON` (read
it through the module, after `setup`). A line costs some 20 us, and much of what is logged can be
caused from outside. So each event has a bucket (`EVENT_PER_S`), and writing waits for nobody: what
a pipe does not take waits in a bounded queue (`log_writer`). Lines left out are counted, and
`log.dropped` tells it. A stderr that is gone loses events and nothing else. Events at debug have no
bucket: who asks for them wants all.
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
CHAIN_MAX: Final = 10  # exceptions shown of a chain or group
EVENT_PER_S: Final = 200.0  # lines of one event at info and above: 0.4 % of a core
EVENT_BURST: Final = 2_000  # a node that drains ends all its sessions at once
EVENTS_MAX: Final = 1_000  # names of events are written in the code; a bound all the same

_TOKEN = re.compile(r"eyJ[\w-]{6,}\.[\w-]+(?:\.[\w-]*)?")
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def setup(
    level: Literal["debug", "info", "warning", "error"],
    format: Literal["auto", "json", "pretty", "journal"],
    stream: BinaryIO | None = None,
    *,
    node: str | None = None,
) -> None:
    """Configure structlog and `logging` for this process.

    Calling it again replaces what was; `stream` is stderr's bytes unless given.

    `node`: who speaks, where several processes write to one place.
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
    # A line for each connection that the pool cannot have, or finds ended: `database.outage` has
    # told that once, with its reason.
    logging.getLogger("psycopg.pool").setLevel(logging.INFO if DEBUG_ON else logging.ERROR)


class _Output:
    """Where lines go. Never raises: a log that cannot be written must not end what it tells of."""

    __slots__ = ("_put", "name")

    def __init__(self, put: Callable[[bytes], None], name: str = "") -> None:
        self._put = put
        self.name = name

    def write(self, line: bytes) -> None:
        self._put(line + b"\n")

    debug = info = warning = error = critical = exception = write


def _way_out(stream: BinaryIO) -> Callable[[bytes], None]:
    """What takes a line: the stream itself, or a thread where writing could wait for somebody."""
    try:
        fd = stream.fileno()
        if log_writer.may_block(fd):
            return log_writer.writer(fd).put
    except (OSError, ValueError):  # no file at all, such as a test's
        pass

    def put(line: bytes) -> None:
        try:
            stream.write(line)
            stream.flush()
        except (OSError, ValueError):  # the reader has gone, or the stream is closed
            pass

    return put


def dropped() -> int:
    """Lines that were left out, so far: over their bucket, or not taken by whoever reads."""
    return _Buckets.dropped + log_writer.dropped()


class _Buckets:
    """Drops what is too much of one event."""

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
    """Each line begins with its priority as sd-daemon(3) has it, which systemd takes off: so
    `journalctl -p warning` finds warnings.
    """

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
    """Does systemd's journal read this stream?

    JOURNAL_STREAM names what it reads, and is inherited by those whose stderr goes elsewhere.
    """
    try:
        at = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{at.st_dev}:{at.st_ino}"


class Bridge(logging.Handler):
    """Hands the libraries' records to structlog.

    Only their first line: asyncio's further ones show what a callback was given.
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
    """Take out what no log may hold, and turn every value into plain JSON.

    `exc_info` becomes `exception`, a text.
    """
    error = _error_of(event.pop("exc_info", None))
    shown: EventDict = {key: _masked(key, value, 0) for key, value in event.items()}
    if error is not None:
        shown["exception"] = "\n".join(_printable(_mask_text(line)) for line in _tell(error))
    return shown


def _masked(key: object, value: object, depth: int) -> object:
    if isinstance(key, str) and key.lower() in SECRET_KEYS and value is not None:
        return MASKED
    match value:
        case None | bool() | float():
            return value
        case int():
            return int(value) if abs(value) < 1 << 63 else MASKED  # orjson's bound; an IntEnum becomes its number
        case str():
            return _mask_text(value)
        case PurePath():
            return _mask_text(str(value))
        case BaseException():
            return _mask_text(_say(value))
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
    """Shows control characters as escapes: a renderer for terminals prints an exception's text as
    it is.
    """
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


def _say(error: BaseException) -> str:
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _tell(error: BaseException) -> Iterator[str]:
    """The lines of a traceback, innermost exception last as Python has it, but with the first line
    of each message alone.
    """
    waiting: list[tuple[str, BaseException]] = [("", error)]
    told: set[int] = set()
    while waiting and len(told) < CHAIN_MAX:
        how, one = waiting.pop(0)
        if id(one) in told:
            continue
        told.add(id(one))
        yield how + _say(one)
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
    """`time`, `level`, `event`, `logger` first, as people read these too."""
    line = {key: event.pop(key) for key in ("time", "level", "event", "logger")}
    line.update(event)
    try:
        return orjson.dumps(line)
    except TypeError:  # a lone surrogate: json writes it as an escape
        return json.dumps(line).encode()


def _pretty(colors: bool) -> Processor:
    """Values with spaces or control characters are shown as Python literals: nothing in them can
    act on the terminal.
    """
    renderer = structlog.dev.ConsoleRenderer(colors=colors, timestamp_key="time", repr_native_str=True, pad_event_to=24)

    def render(logger: Any, method: str, event: EventDict) -> bytes:
        event["time"] = event["time"][11:23] + "Z"
        return renderer(logger, method, event).encode("utf-8", "backslashreplace")

    return render
