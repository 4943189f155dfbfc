"""Ctrl-C and SIGTERM at any moment of a bot and of a command: a prompt end without a traceback."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Final

import pytest

from chatd.client.testing import FakeChatd, Session
from tests.fix_interrupts import TOLERATED, Run, interrupted

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
HINT: Final = "Ctrl-C ends it"  # what a command says on stderr as it begins


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_bot_ends(number: signal.Signals, tmp_path: Path) -> None:
    async with FakeChatd() as server:
        greeting = asyncio.create_task(_greet_all(server))
        whole, *runs = await interrupted("bot", number, 20, server.url, str(tmp_path / "state"))
        greeting.cancel()
    assert (whole.status, whole.errors) == (0, "")
    assert any(one.at is not None for one in runs)
    ends = (0,) if number is signal.SIGINT else (0, -signal.SIGTERM)
    bad = [one for one in runs if one.errors or one.status not in ends]
    assert len(bad) <= TOLERATED * len(runs), bad[0]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", ["tail", "chat"])
async def test_a_command_ends(command: str, number: signal.Signals, tmp_path: Path) -> None:
    args = {"tail": ["tail", "me"], "chat": ["chat", "--lines", "me", "bob"]}[command]
    async with FakeChatd() as server:
        greeting = asyncio.create_task(_greet_all(server))
        args += ["--url", server.url, "--data-dir", str(tmp_path)]
        whole, *runs = await interrupted("command", number, 4, *args)
        greeting.cancel()
    assert whole.status in (130, -signal.SIGINT)
    assert any(one.at is not None for one in runs)
    assert _is_clean(whole, number)
    bad = [one for one in runs if not _is_clean(one, number)]
    assert len(bad) <= 1, bad[0]


async def _greet_all(server: FakeChatd) -> None:
    """Each that connects gets a message, so it has something to do."""
    greeted: set[Session] = set()
    while True:
        await server.connected.wait()
        server.connected.clear()
        for session in set(server.sessions.values()) - greeted:
            greeted.add(session)
            server.say("bob", session.user, "hi")


def _is_clean(one: Run, number: signal.Signals) -> bool:
    said = [line for line in one.errors.splitlines() if HINT not in line]
    return not said and one.status in (130, -signal.SIGINT, -number)
