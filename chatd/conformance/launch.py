"""Where the server under test is: already there, or started by the kit for each set of settings.

    Deployed(url, token, settings)   a server that is there; it has the defaults, but for `settings`
    Launched(command, token)         `command` starts one; its settings are in the environment

Both give a `ServerPlace` for the settings that a vector needs, or say what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from chatd.conformance.tokens import TokenMaker
from chatd.conformance.values import Frame
from chatd.conformance.vectors import Vector
from chatd.errors import ChatdError, SettingError

START_S: Final = 60.0  # until a started server says where it is
END_S: Final = 30.0  # from SIGTERM until it has ended
LINES_KEPT: Final = 20  # of what it prints, for the reason of a failure
VARIABLE: Final = "CHATD_"
URL: Final = re.compile(r"\b(?:ws|wss|http|https)://[^\s\"'<>,]+")


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """A running server. `drain`: makes it drain, where the kit can do that."""

    url: str
    token: TokenMaker
    drain: Callable[[], Awaitable[None]] | None = None


class Target(Protocol):
    """The server under test."""

    def missing(self, vector: Vector) -> str:
        """What it lacks for this vector, as a phrase; empty if it can be run."""

    def place(self, settings: Frame) -> contextlib.AbstractAsyncContextManager[ServerPlace]:
        """The server with these settings, for as long as the block."""


class Deployed:
    """A server that is there. `settings`: what it runs with, where that is not the default."""

    def __init__(self, url: str, token: TokenMaker, settings: Mapping[str, object] | None = None) -> None:
        self._place = ServerPlace(url, token)
        self._settings = dict(settings or {})

    def missing(self, vector: Vector) -> str:
        if vector.is_drained:
            return "needs to make the server drain: give --launch instead of a URL"
        if vector.settings != self._settings:
            return f"needs a server with {_listed(vector.settings)}: give --launch, or --setting for one that has them"
        return missing_lifetimes(vector, self._place.token)

    @contextlib.asynccontextmanager
    async def place(self, settings: Frame) -> AsyncIterator[ServerPlace]:
        yield self._place


class Launched:
    """A command that starts a server in the foreground and prints its URL; SIGTERM drains it."""

    def __init__(self, command: str, token: TokenMaker) -> None:
        self._words = shlex.split(command)
        self._token = token

    def missing(self, vector: Vector) -> str:
        return missing_lifetimes(vector, self._token)

    @contextlib.asynccontextmanager
    async def place(self, settings: Frame) -> AsyncIterator[ServerPlace]:
        variables = {VARIABLE + key.upper(): as_variable(value) for key, value in settings.items()}
        try:
            process = await asyncio.create_subprocess_exec(
                *self._words,
                env={**os.environ, **variables},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as e:
            raise ChatdError(f"--launch: {self._words[0]} cannot be run: {e.strerror}") from None
        printed: deque[str] = deque(maxlen=LINES_KEPT)
        try:
            async with asyncio.timeout(START_S):
                url = await _url(process, printed)
            reading = asyncio.create_task(_drop(process))

            async def drain() -> None:
                process.send_signal(signal.SIGTERM)

            yield ServerPlace(url, self._token, drain)
            reading.cancel()
        except TimeoutError:
            last = printed[-1] if printed else "it printed nothing"
            raise ChatdError(f"--launch: the server printed no URL within {START_S:.0f} s: {last}") from None
        finally:
            await _end(process)


async def _url(process: asyncio.subprocess.Process, printed: deque[str]) -> str:
    stdout = _pipe(process)
    while line := (await stdout.readline()).decode(errors="replace"):
        printed.append(line.strip())
        if (found := URL.search(line)) is not None:
            return websocket_url(found[0])
    status = await process.wait()
    raise ChatdError(f"--launch: the server ended with status {status}: {printed[-1] if printed else ''}")


async def _drop(process: asyncio.subprocess.Process) -> None:
    """Read what it prints, so that it can go on printing."""
    while await _pipe(process).readline():
        pass


def _pipe(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    if process.stdout is None:
        raise ChatdError("the server's output is not a pipe")
    return process.stdout


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(END_S):
            await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def websocket_url(url: str) -> str:
    """The WebSocket of a server that names its page: `http://host:1/` is `ws://host:1/ws`."""
    url = re.sub(r"^http", "ws", url.rstrip(".;)"))
    return url if re.search(r"^wss?://[^/]+/.", url) else url.rstrip("/") + "/ws"


def missing_lifetimes(vector: Vector, token: TokenMaker) -> str:
    """What the maker of tokens lacks for this vector."""
    if vector.lifetimes and not token.has_lifetimes:
        return "needs tokens of other lifetimes: give {ttl_s} in --token-command"
    return ""


def as_variable(value: object) -> str:
    """A setting's value as chatd reads it from the environment."""
    return value if isinstance(value, str) else json.dumps(value)


def as_settings(given: Iterable[str]) -> Frame:
    """`NAME=VALUE` as a vector writes them. Raises SettingError."""
    settings: Frame = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not (name and equals):
            raise SettingError(f"--setting: {one!r} is no setting; give NAME=VALUE, such as rate_messages=1")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def _listed(settings: Frame) -> str:
    return ", ".join(f"{key}={as_variable(value)}" for key, value in settings.items()) or "the defaults"
