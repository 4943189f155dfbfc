"""The log on the screen keeps its place: older pages above, new lines below, another width."""

from __future__ import annotations

from typing import Literal

import pytest

from chatd.tui.log_view import LogView
from chatd.tui.rows import Key
from tests.fix_fake_chatd import Frame, Session
from tests.fix_terminal import FakeChatd, Terminal, terminal
from tests.until import until


def place_of(log: LogView, key: Key | None = None) -> tuple[Key, int]:
    """A message, and where it stands below the upper edge; without a key: the first on the screen."""
    top = log.scroll_offset.y
    y = next(y for y, row in enumerate(log.rows) if (row.key == key if key else y >= top and row.key[0] == "message"))
    return log.rows[y].key, y - top


def selected_in(log: LogView) -> Key | None:
    return log.selected


async def on_bob(t: Terminal, last: str) -> LogView:
    await t.shows(last)
    await t.press("shift+tab")
    assert t.app.focused is t.app.log_view
    return t.app.log_view


async def _at_the_top(t: Terminal, log: LogView) -> bool:
    await t.press("pageup")
    return log.scroll_offset.y == 0 and ("message", 1) in {row.key for row in log.rows}


async def test_older_pages_are_loaded_above_without_a_jump() -> None:
    held: list[Frame] = []

    def fault(_session: Session, frame: Frame) -> Literal["ignore"] | None:
        if frame["t"] == "history" and "before" in frame and not held:
            held.append(frame)
            return "ignore"
        return None

    async with FakeChatd() as server:
        conv = server.say("bob", "me", *(f"m{n}" for n in range(200)))
        server.fault = fault
        async with terminal(server, "bob", (80, 20)) as t:
            log = await on_bob(t, "m199")
            assert len(log.rows) < 60, "one page fills the screen"
            await t.press("pageup", "pageup", "pageup")
            await until(lambda: held)
            before, rows = place_of(log), len(log.rows)
            session = server.session("me")
            session.push(t="ok", id=held[0]["id"], **server._on_history(session, held[0]))
            await until(lambda: len(log.rows) > rows)
            assert place_of(log, before[0]) == before
            assert not log.follows
            await until(lambda: _at_the_top(t, log))
            await t.shows("m0", but="older messages")
            assert [row.key for row in log.rows if row.key[0] == "message"] == [("message", n) for n in range(1, 201)]
            assert sum(frame["t"] == "history" for frame in session.requests) == 4
            assert conv.head == 200


async def test_a_new_line_below_moves_nothing_for_who_reads_above() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", *(f"m{n}" for n in range(40)))
        async with terminal(server, "bob", (80, 16)) as t:
            log = await on_bob(t, "m39")
            await t.press("pageup", "pageup")
            before, rows = place_of(log), len(log.rows)
            server.say("bob", "me", "new")
            await until(lambda: len(log.rows) > rows)
            assert place_of(log, before[0]) == before
            assert "1 unread" in await t.shows("1 unread")
            await t.press("end")
            await t.shows("new", but="1 unread")
            server.say("bob", "me", "newer")
            await t.shows("newer")
            assert log.follows


@pytest.mark.parametrize("width", [44, 120])
async def test_another_width_keeps_the_message_at_the_top(width: int) -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", *(f"{'word ' * (n % 23)}m{n}" for n in range(40)))
        async with terminal(server, "bob", (80, 16)) as t:
            log = await on_bob(t, "m39")
            await t.press("pageup", "pageup", "pageup")
            top = log.scroll_offset.y
            key = next(row.key for row in log.rows[top:] if row.key[0] == "message")
            await t.pilot.resize_terminal(width, 16)
            await until(lambda: log.virtual_size.width != 0 and log.size.width < width)
            assert next(row.key for row in log.rows[log.scroll_offset.y :] if row.key[0] == "message") == key


async def test_what_is_written_pushes_the_log_up_and_not_away() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", *(f"m{n}" for n in range(40)))
        async with terminal(server, "bob", (80, 16)) as t:
            await t.shows("m39")
            await t.press("a", "ctrl+j", "b", "ctrl+j", "c")
            await t.shows("m39", " c")
            assert t.app.log_view.follows


async def test_keys_select_scroll_and_copy() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", *(f"m{n}" for n in range(40)))
        async with terminal(server, "bob", (80, 16)) as t:
            log = await on_bob(t, "m39")
            await t.press("e")
            assert selected_in(log) is None, "nothing is selected, so nothing is asked"
            await t.press("up", "up", "c")
            assert selected_in(log) == ("message", 39)
            await t.shows("copied")
            assert t.app.clipboard == "m38"
            await t.press("down", "down")
            assert selected_in(log) is None
            await t.press("home")
            assert log.scroll_offset.y == 0
            await t.press("up", "up")
            await t.press("space")
            assert log.scroll_offset.y > 0
            await t.press("G")
            assert log.follows


async def test_the_wheel_scrolls_and_the_selection_is_seen_without_colour() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", *(f"m{n}" for n in range(40)))
        async with terminal(server, "bob", (80, 16)) as t:
            log = await on_bob(t, "m39")
            before = log.scroll_offset.y
            log.scroll_relative(y=-3, animate=False)
            await t.pilot.pause()
            assert log.scroll_offset.y == before - 3
            await t.press("up")
            y = next(y for y, row in enumerate(log.rows) if row.key == log.selected) - log.scroll_offset.y
            styles = [segment.style for segment in log.render_line(y)]
            assert styles
            assert all(style is not None and style.reverse for style in styles)
