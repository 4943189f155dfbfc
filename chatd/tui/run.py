"""Runs `chatd chat`: on a screen, or line by line; from its first connection to its last word.

A screen needs a terminal at all three standard streams and textual. What was not sent when the
person quit is written to stderr, so that no word of theirs is lost. SIGINT and SIGTERM end it as
quitting does, so that the terminal gets its modes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from typing import Final

from chatd.client import Client, Token
from chatd.client.outages import Outages
from chatd.errors import ChatdError
from chatd.tui.lines import Lines, lines_of

DRAIN_S: Final = 2.0  # for what is on its way when the person quits
FAILED: Final = 1
EXTRA: Final = ("textual", "rich")
NO_TEXTUAL: Final = (
    "chatd chat needs textual, which is not installed; in a clone of chatd:"
    f" {sys.executable} -m pip install --require-hashes -r requirements/tui.txt;"
    " or use it without a screen: chatd chat --lines USER PEER"
)


def is_terminal() -> bool:
    """Whether there is a screen to draw on, and a keyboard."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def on_screen(url: str, token: Token, first: str | None) -> int:
    """Chat until the person quits. Returns the exit status. Raises ChatdError without textual."""
    try:
        from chatd.tui.app import ChatApp
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] not in EXTRA:
            raise
        raise ChatdError(NO_TEXTUAL) from None
    from chatd.tui import wording

    _keep_the_log_off_the_screen()
    for name in ("COLUMNS", "LINES"):  # exported by a parent of another size, they hide the terminal's own
        os.environ.pop(name, None)

    signals: list[signal.Signals] = []

    async def life() -> ChatApp:
        app = ChatApp(_client(url, token), first)
        with _cancelled_by(signals):
            try:
                await app.run_async()
            finally:
                await app.controller.close(DRAIN_S if app.model.unsent() else 0)
        return app

    app = asyncio.run(life())
    for text in wording.unsent(app.model, app.drafts):
        sys.stderr.write(f"chatd: not sent {text}\n")
    if app.model.reason:
        raise ChatdError(f"{url} ended it: {wording.reason(app.model)}")
    return 128 + signals[0] if signals else app.return_code or 0


@contextlib.contextmanager
def _cancelled_by(signals: list[signal.Signals]) -> Iterator[None]:
    """SIGINT and SIGTERM cancel what this task awaits in here, and are added to `signals`."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def end(number: signal.Signals) -> None:
        signals.append(number)
        task.cancel()

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, end, number)
    try:
        yield
    except asyncio.CancelledError:
        if not signals:
            raise
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def by_lines(url: str, token: Token, peer: str) -> int:
    """Send the lines of standard input to `peer`. Returns the exit status. Raises Stopped."""

    async def life() -> int:
        client = _client(url, token, on_line=Outages(url, sys.stderr))
        lines = Lines(client, peer, out=sys.stdout, err=sys.stderr)
        await lines.chat(lines_of(sys.stdin))
        return FAILED if lines.refused else 0

    return asyncio.run(life())


def _client(url: str, token: Token, on_line: Outages | None = None) -> Client:
    return Client(url, token=token, device=f"chat-{uuid.uuid4().hex[:12]}", on_line=on_line)


def _keep_the_log_off_the_screen() -> None:
    """What the SDK logs is on the screen in other words, and a line to stderr would tear it."""
    logger = logging.getLogger("chatd.client")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
