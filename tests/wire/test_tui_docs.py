"""The screens in docs/terminal.md are what the terminal shows."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from chatd.tui.dialogs import KEYS
from tests.fix_terminal import FakeChatd, Terminal, terminal

T0: Final = 1_790_000_000_000  # about when the fake server lives
PAGE: Final = (Path(__file__).parents[2] / "docs" / "terminal.md").read_text()
SHOWN: Final = [block.strip("\n") for block in re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def a_day(server: FakeChatd) -> None:
    """What alice and her friends wrote."""
    server.say("dave", "alice", "see you on Monday")
    server.say("alice", "dave", "yes")
    server.say("carol", "alice", "the build is green", "shall we?")
    server.say("alice", "bob", "have you seen the new protocol page?")
    server.say("bob", "alice", "I have. One question:\nwhat is a floor?")
    conv = server.say("alice", "bob", "the lowest seq that is still kept", "older ones are gone", "ask me anything")
    conv.cursors["bob"] = [4, 3]
    server.add(conv, "alice", "edit", "e1", body="older entries have passed retention", ref=4)
    for one in server.convs.values():
        one.cursors.setdefault("alice", [one.head, one.head if one is not server.conv("carol", "alice") else 0])


async def as_documented(t: Terminal) -> None:
    server = t.server
    await t.shows("retention", "○ carol", "○ bob", "○ dave", "2 unread")
    session = server.session("alice")
    for n, (user, state) in enumerate({"bob": "online", "carol": "away"}.items()):
        session.push(t="presence", user=user, state=state, v=10**6 + n)
    session.push(t="typing", c=server.conv("alice", "bob").c, **{"from": "bob"}, to="alice")
    t.app.model.going("bob", "message", "and this one waits for the line", None, T0).failed = None
    t.app.model.going("bob", "edit", "too late for this", 1, T0).failed = "too_late: the time to edit it is over"
    t.app.draw_soon()
    await t.shows("typing…", "◐ carol", "● bob", "!!  edit")


@pytest.mark.parametrize(("n", "size"), [(0, (80, 20)), (1, (40, 12))])
async def test_a_screen_is_as_documented(n: int, size: tuple[int, int]) -> None:
    async with FakeChatd() as server:
        a_day(server)
        async with terminal(server, "bob", size, "alice") as t:
            if size[0] < 72:
                await t.shows("✓✓")
                await t.press("ctrl+l")
                await t.shows("carol", "○ dave")
            else:
                await as_documented(t)
            assert t.screen == SHOWN[n], f"docs/terminal.md should show:\n{t.screen}"


def test_the_keys_are_as_documented() -> None:
    assert KEYS.strip("\n") == SHOWN[2]
