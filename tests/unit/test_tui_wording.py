"""What the screen says in a line: every state has a sign and a word."""

from __future__ import annotations

from datetime import date
from typing import get_args

import pytest
from rich.cells import cell_len

from chatd.client import ConversationItem, LineState, Presence, PresenceState, Typing
from chatd.tui import wording
from chatd.tui.model import Model

TODAY = date(2026, 9, 22)


@pytest.fixture
def model() -> Model:
    model = Model()
    model.user = "me"
    model.listed([ConversationItem("12", "bob", 5, 1, 5_000, 0, 0, 0, 0, 3, True)])
    return model


def listed(model: Model, width: int = 24, **drafts: str) -> str:
    return wording.listed(model, model.conversation("bob"), drafts, 0.0, width).plain


@pytest.mark.parametrize(
    ("state", "sign"), [("online", "●"), ("away", "◐"), ("offline", "○"), ("hidden", " "), ("unknown", " ")]
)
def test_presence_is_a_sign_before_the_name(model: Model, state: PresenceState, sign: str) -> None:
    model.event(Presence("bob", state, 1), 0)
    assert listed(model) == f"{sign} bob" + " " * 18 + "3"


def test_the_most_urgent_word_stands_at_the_end(model: Model) -> None:
    it = model.conversation("bob")
    it.unread = 1_000
    assert listed(model).endswith(" 999+")
    it.unread = 0
    assert listed(model, bob="hi").endswith(" draft")
    outgoing = model.going("bob", "message", "x", None, 0)
    assert listed(model, bob="hi").endswith(" .. 1")
    model.event(Typing("12", "bob"), 0.0)
    assert listed(model).endswith(" typing")
    outgoing.failed = "refused"
    assert listed(model).endswith(" !! 1")


def test_a_name_that_is_too_long_leaves_room_for_the_word(model: Model) -> None:
    it = model.conversation("日本" * 30)
    it.unread = 7
    text = wording.listed(model, it, {}, 0.0, 20).plain
    assert cell_len(text) == 20
    assert text.endswith(("… 7", "…  7"))


def test_the_title_has_the_peer_and_what_is_known_of_them(model: Model) -> None:
    assert "Ctrl+N" in wording.title(model, 0.0, TODAY).plain
    model.open("bob")
    assert wording.title(model, 0.0, TODAY).plain == "bob"
    model.event(Presence("bob", "offline", 1, 1_790_000_000_000), 0)
    assert wording.title(model, 0.0, TODAY).plain.startswith("bob  ○ offline, last seen 21 Sep 2026 ")
    model.event(Presence("bob", "online", 2), 0)
    model.event(Typing("12", "bob"), 0.0)
    assert wording.title(model, 0.0, TODAY).plain == "bob  ● online  typing…"
    model.open("me")
    assert wording.title(model, 0.0, TODAY).plain == "notes to yourself"


def test_the_status_has_the_line_and_what_waits(model: Model) -> None:
    model.line = "offline"
    model.going("bob", "message", "a", None, 0)
    model.going("bob", "message", "b", None, 0).failed = "refused"
    said = wording.status(model, "a note\x1b", is_editing=True).plain
    assert said == (
        "✕ offline: what you send waits  editing: Enter saves, Esc gives up  a note␛"
        "  !! 1 failed  .. 1 waiting  3 unread  as me"
    )


@pytest.mark.parametrize("reason", [*wording.REASONS, "bad_frames\x1b"])
def test_an_end_has_its_reason(model: Model, reason: str) -> None:
    model.line, model.reason = "stopped", reason
    said = wording.status(model, "", is_editing=False).plain
    assert said.startswith(f"■ ended: {wording.REASONS.get(reason, 'bad_frames␛')}")


def test_every_state_of_the_line_has_words() -> None:
    assert set(wording.LINES) == set(get_args(LineState))


def test_what_would_be_lost_is_told(model: Model) -> None:
    model.going("bob", "message", "first\nline " + "x" * 90, None, 0)
    model.going("bob", "delete", "", 3, 0).failed = "no_message"
    told = wording.unsent(model, {"carol": "\x1bdraft"})
    assert told[0].startswith("to bob: «first line xxx")
    assert told[0].endswith("…» (is being sent)")
    assert told[1:] == ["to bob: a deletion (failed: no_message)", "to carol: «␛draft» (a draft)"]
