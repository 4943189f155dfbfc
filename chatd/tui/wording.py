"""What the screen says in a line: a conversation of the list, title, status, what is unsent. Pure.

Each state has a sign and a word, so that neither colour nor the sign's shape is needed.
"""

from __future__ import annotations

from datetime import date
from typing import Final

from rich.cells import cell_len
from rich.text import Text

from chatd.client import LineState
from chatd.tui.model import ConversationView, Model, Progress
from chatd.tui.rows import SIGNS, last_seen
from chatd.tui.text import fitted, inert, isolated

PRESENCE: Final = {"online": "●", "away": "◐", "offline": "○"}
UNREAD_MAX: Final = 999
QUOTED_MAX: Final = 60  # cells of a message that is quoted
LINES: Final[dict[LineState, str]] = {
    "connecting": "… connecting",
    "online": "● online",
    "offline": "✕ offline: what you send waits",
    "stopped": "■ ended",
}
REASONS: Final = {
    "replaced": "the same device connected elsewhere",
    "too_many_devices": "too many devices are connected",
    "unauthorized": "the server refuses the token; does it use the same keys (--data-dir, --keys-file)?",
    "token_expired": "the token has ended",
    "no_token": "there is no token",
}


def title(model: Model, now: float, today: date) -> Text:
    """The name of the open conversation, and what is known of its peer."""
    it = model.shown
    if it is None:
        return Text("chatd: choose a conversation, or press Ctrl+N", end="", overflow="ellipsis", no_wrap=True)
    text = Text(end="", overflow="ellipsis", no_wrap=True)
    text.append(isolated(inert("notes to yourself" if it.peer == model.user else it.peer)), "bold")
    presence = model.presence.get(it.peer)
    if presence is not None and presence.state in PRESENCE:
        text.append(f"  {PRESENCE[presence.state]} {presence.state}")
        if presence.state == "offline" and (seen := last_seen(presence.seen, today)):
            text.append(f", {seen}")
    if model.is_typing(it.peer, now):
        text.append("  typing…", "italic")
    return text


def reason(model: Model) -> str:
    """Why the line is stopped."""
    return REASONS.get(model.reason, inert(model.reason))


def status(model: Model, note: str, *, is_editing: bool) -> Text:
    """The line, then what is most urgent to say."""
    text = Text(LINES[model.line], end="", overflow="ellipsis", no_wrap=True)
    if model.line == "stopped":
        text.append(f": {reason(model)}")
    if is_editing:
        text.append("  editing: Enter saves, Esc gives up", "bold")
    if note:
        text.append(f"  {inert(note)}", "bold")
    waiting = model.unsent()
    failed = sum(outgoing.failed is not None for outgoing in waiting)
    if failed:
        text.append(f"  !! {failed} failed")
    if len(waiting) > failed:
        text.append(f"  .. {len(waiting) - failed} waiting")
    if model.unread:
        text.append(f"  {model.unread} unread")
    if model.user:
        text.append(f"  as {isolated(inert(model.user))}", "dim")
    return text


def quoted(body: str) -> str:
    """The beginning of a message, in one line."""
    return f"«{isolated(fitted(inert(body.replace(chr(10), ' ')), QUOTED_MAX))}»"


def unsent(model: Model, drafts: dict[str, str]) -> list[str]:
    """What would be lost, a line each: what waits, what failed, what is being written."""
    lines = []
    for outgoing in model.unsent():
        state = "is being sent" if outgoing.failed is None else f"failed: {inert(outgoing.failed)}"
        what = "a deletion" if outgoing.kind == "delete" else quoted(outgoing.body)
        lines.append(f"to {isolated(inert(outgoing.peer))}: {what} ({state})")
    lines += [f"to {isolated(inert(peer))}: {quoted(text)} (a draft)" for peer, text in drafts.items()]
    return lines


def listed(model: Model, it: ConversationView, drafts: dict[str, str], now: float, width: int) -> Text:
    """One conversation in one line of `width` cells."""
    presence = model.presence.get(it.peer)
    sign = PRESENCE.get(presence.state, " ") if presence is not None else " "
    end = _ending(model, it, drafts, now)
    name = inert("notes to yourself" if it.peer == model.user else it.peer)
    room = max(1, width - 2 - (cell_len(end) + 1 if end else 0))
    name = fitted(name, room)
    text = Text(f"{sign} ", end="")
    text.append(isolated(name), "bold" if it.unread or it.peer == model.opened else "")
    return text.append(" " * (width - 2 - cell_len(name) - cell_len(end))).append(end, "bold")


def _ending(model: Model, it: ConversationView, drafts: dict[str, str], now: float) -> str:
    """The most important word on a conversation."""
    failed = sum(outgoing.failed is not None for outgoing in it.outgoing)
    if failed:
        return f"{SIGNS[Progress.FAILED]} {failed}"
    if it.unread:
        return f"{UNREAD_MAX}+" if it.unread > UNREAD_MAX else str(it.unread)
    if model.is_typing(it.peer, now):
        return "typing"
    if it.outgoing:
        return f"{SIGNS[Progress.SENDING]} {len(it.outgoing)}"
    return "draft" if it.peer in drafts and it.peer != model.opened else ""
