"""The composer: what Enter does, and the limit as the server counts it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from textual import events
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from chatd.tui.composer import ROWS_MAX, Composer
from tests.until import until


class Alone(App[None]):
    """A composer and what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.composer = Composer("composer")
        self.said: list[str] = []

    def compose(self) -> ComposeResult:
        yield self.composer

    def on_composer_submitted(self, event: Composer.Submitted) -> None:
        self.said.append(event.body)

    def on_composer_edit_last(self) -> None:
        self.said.append("edit last")


@asynccontextmanager
async def composer() -> AsyncIterator[tuple[Alone, Composer, Pilot[None]]]:
    app = Alone()
    async with app.run_test(size=(40, 12)) as pilot:
        app.composer.focus()
        yield app, app.composer, pilot


async def test_enter_sends_and_three_keys_begin_a_line() -> None:
    async with composer() as (app, it, pilot):
        await pilot.press("a", "ctrl+j", "b", "shift+enter", "c", "alt+enter", "enter")
        assert app.said == ["a\nb\nc"]
        assert it.text == ""


@pytest.mark.parametrize("text", ["", "  ", "\n\n", "é" * 1_025])
async def test_what_the_server_would_refuse_is_not_sent(text: str) -> None:
    async with composer() as (app, it, pilot):
        it.load_text(text)
        await pilot.press("enter")
        assert app.said == []


@pytest.mark.parametrize(("text", "said"), [
    ("a" * 1_638, ""),
    ("a" * 1_639, "1,639 of 2,048 bytes"),
    ("é" * 1_024, "2,048 of 2,048 bytes"),
    ("😀" * 512 + "a", "2,049 of 2,048 bytes: 1 too many"),
])  # fmt: skip
async def test_the_limit_is_told_as_it_nears_in_bytes_of_utf_8(text: str, said: str) -> None:
    async with composer() as (app, it, pilot):
        it.load_text(text)
        assert it.size_said == said
        await pilot.press("enter")
        assert app.said == ([] if "too many" in said else [text])


async def test_the_limit_is_the_servers() -> None:
    async with composer() as (app, it, pilot):
        it.body_max = 4
        it.load_text("12345")
        await pilot.press("enter")
        assert (app.said, it.size_said) == ([], "5 of 4 bytes: 1 too many")


async def test_what_is_pasted_loses_its_control_characters() -> None:
    async with composer() as (_, it, pilot):
        it.post_message(events.Paste("a\r\nb\rc\td\x1b[31m\x00\x9b é😀"))
        await pilot.pause()
        assert it.text == "a\nb\nc\td[31m é😀"


async def test_it_grows_with_its_lines_up_to_a_bound() -> None:
    async with composer() as (_, it, pilot):
        assert it.size.height == 1
        await pilot.press("a", "ctrl+j", "b")
        await pilot.pause()
        assert it.size.height == 2
        it.load_text("\n" * 50)
        await pilot.pause()
        assert it.size.height == ROWS_MAX


async def test_up_in_an_empty_composer_edits_the_last() -> None:
    async with composer() as (app, _, pilot):
        await pilot.press("up")
        assert app.said == ["edit last"]
        await pilot.press("a", "up")
        assert app.said == ["edit last"]


async def test_what_is_edited_is_shown_inert_and_stays_as_it_is() -> None:
    async with composer() as (_, it, pilot):
        text = "a\x1b[2J\u202eb"
        it.load_text(text)
        await pilot.pause()
        assert it.get_line(0).plain == "a␛[2J\ufffdb"
        assert it.text == text


async def test_keys_that_come_at_once_keep_their_order() -> None:
    async with composer() as (app, it, _):
        for text in ("hello bob", "and this", "half"):
            for c in text:
                app.post_message(events.Key("space" if c == " " else c, c))
            if text != "half":
                app.post_message(events.Key("enter", "\r"))
        await until(lambda: it.text == "half" and len(app.said) == 2)
        assert app.said == ["hello bob", "and this"]
