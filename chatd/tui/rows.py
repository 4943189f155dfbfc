"""The open conversation as lines of a given width. Pure.

    ──────────── Monday 30 November 2026 ────────────
    bob
    14:02     a message, and a second line of it
              which stands below the first
    you
    14:03 ✓✓  an own one, with how far it has got

A sign stands for each state, so that no colour is needed: `SIGNS`. Lines of one message share its
key, by which it is selected and by which a view keeps its place when lines come in above.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final, TypeAlias

from rich.console import Console
from rich.text import Text

from chatd.client import Message
from chatd.tui.model import ConversationView, Outgoing, Progress
from chatd.tui.text import FSI, PDI, fitted, inert, isolated

Key: TypeAlias = tuple[str, int]  # ("message", seq), ("outgoing", n); others cannot be selected

SIGNS: Final = {
    Progress.SENDING: "..",
    Progress.SENT: "✓",
    Progress.DELIVERED: "✓✓",
    Progress.READ: "✓✓✓",
    Progress.FAILED: "!!",
}
GUTTER: Final = 10  # "14:02 ✓✓✓ "
BODY_MIN: Final = 8
CACHED_MAX: Final = 20_000  # lines of messages
SELECTABLE: Final = ("message", "outgoing")

# It only wraps; nothing is ever written to it
_WRAPPER: Final = Console(file=io.StringIO(), width=80, force_terminal=False, color_system=None)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the screen."""

    key: Key
    text: Text


def pattern(needle: str) -> re.Pattern[str] | None:
    """What finds `needle` in an inert text, in capitals or not; None: nothing is looked for."""
    needle = inert(needle.strip())
    return re.compile(re.escape(needle), re.IGNORECASE) if needle else None


def found(it: ConversationView, wanted: re.Pattern[str]) -> list[Key]:
    """Where it stands in what is loaded, the oldest first."""
    keys: list[Key] = [("message", m.seq) for m in it.log if wanted.search(inert(m.body or "", lines=True))]
    return keys + [("outgoing", o.n) for o in it.outgoing if wanted.search(inert(o.body, lines=True))]


class RowMaker:
    """Makes the rows; keeps those of messages that have not changed, as wrapping is slow."""

    def __init__(self) -> None:
        self._kept: dict[Key, tuple[object, list[Row]]] = {}

    def rows(self, it: ConversationView, width: int, wanted: re.Pattern[str] | None = None) -> list[Row]:
        """The whole log that is loaded, then what waits to be sent."""
        if len(self._kept) > CACHED_MAX:
            self._kept.clear()
        rows = [_ruled(("older", 0), "older messages are loaded as you scroll up", width)] if it.has_older else []
        day: date | str | None = None
        who: bool | None = None
        is_marked = False
        for message in it.log:
            seq = message.seq
            if (then := day_of(message.ts)) != day:
                day, who = then, None
                rows.append(_ruled(("day", seq), day_text(then), width))
            if not is_marked and 0 < it.mark < seq and not message.own:
                is_marked, who = True, None
                rows.append(_ruled(("new", seq), "new", width))
            if message.own is not who:
                who = message.own
                rows.append(_who(("who", seq), "you" if who else it.peer, width))
            rows += self._message(it, message, width, wanted)
        if not it.log and it.loaded and not it.outgoing:
            rows.append(Row(("empty", 0), Text("nothing has been written here yet", "dim", end="")))
        if it.outgoing and who is not True:
            rows.append(_who(("who", 0), "you", width))
        for outgoing in it.outgoing:
            rows += _outgoing(outgoing, width, wanted)
        return rows

    def _message(self, it: ConversationView, message: Message, width: int, wanted: re.Pattern[str] | None) -> list[Row]:
        progress = it.progress(message) if message.own and message.body is not None else None
        key: Key = ("message", message.seq)
        state = (it.c, message.ts, message.body, message.edited, progress, width, wanted)
        kept = self._kept.get(key)
        if kept is None or kept[0] != state:
            sign = "" if progress is None else SIGNS[progress]
            if message.body is None:
                body = Text("(deleted)", "dim italic")
            else:
                body = _body(message.body, width, wanted)
                if message.edited:
                    body.append(" (edited)", "dim")
            kept = self._kept[key] = (state, _block(key, message.ts, sign, "dim", body, width))
        return kept[1]


def _outgoing(outgoing: Outgoing, width: int, wanted: re.Pattern[str] | None) -> list[Row]:
    progress = Progress.SENDING if outgoing.failed is None else Progress.FAILED
    body = _body(outgoing.body, width, wanted)
    if outgoing.kind != "message":
        body = Text.assemble((f"{outgoing.kind}: ", "italic"), body)
    if outgoing.failed is not None:
        body.append(f"\nnot sent: {inert(outgoing.failed)}; r tries again, x gives it up", "bold")
    style = "dim" if outgoing.failed is None else "bold red"
    return _block(("outgoing", outgoing.n), outgoing.at, SIGNS[progress], style, body, width)


def _body(text: str, width: int, wanted: re.Pattern[str] | None) -> Text:
    body = Text(inert(text, lines=True))
    if wanted is not None:
        body.highlight_regex(wanted, "reverse")
    return body


def _block(key: Key, ts: int, sign: str, sign_style: str, body: Text, width: int) -> list[Row]:
    """A body in its column, the time and the sign before its first line."""
    rows: list[Row] = []
    for line in body.wrap(_WRAPPER, max(BODY_MIN, width - GUTTER), tab_size=4):
        left = Text(f"{clock(ts)} " if not rows else " " * 6, "dim", end="")
        left.append(f"{sign if not rows else '':<4}", sign_style)
        rows.append(Row(key, _isolated(left, line)))
    return rows


def _isolated(left: Text, line: Text) -> Text:
    line.rstrip()
    if isolated(line.plain) == line.plain:
        return left.append_text(line)
    return left.append(FSI).append_text(line).append(PDI)


def _ruled(key: Key, text: str, width: int) -> Row:
    text = fitted(f" {text} ", max(0, width - 4))
    sides = max(0, width - len(text))
    return Row(key, Text("─" * (sides // 2) + text + "─" * (sides - sides // 2), "dim", end=""))


def _who(key: Key, name: str, width: int) -> Row:
    return Row(key, Text(isolated(fitted(inert(name), width)), "bold", end=""))


# ---- times ---------------------------------------------------------------------------------------


def _local(ts: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(ts / 1000).astimezone()
    except (OverflowError, OSError, ValueError):  # what a server sends need not be a time
        return None


def clock(ts: int) -> str:
    """The time of day on this machine, five characters."""
    at = _local(ts)
    return "--:--" if at is None else at.strftime("%H:%M")


def day_of(ts: int) -> date | None:
    """The day on this machine; None: it is no time."""
    at = _local(ts)
    return None if at is None else at.date()


def day_text(day: date | None) -> str:
    """A day in words."""
    return "at an unknown time" if day is None else f"{day:%A} {day.day} {day:%B %Y}"


def last_seen(ts: int | None, today: date) -> str:
    """When somebody was last seen, as short as it is clear."""
    at = None if ts is None else _local(ts)
    if at is None:
        return ""
    return f"last seen {at:%H:%M}" if at.date() == today else f"last seen {at.day} {at:%b %Y} {at:%H:%M}"


def keys_of(rows: list[Row]) -> Iterator[Key]:
    """The messages in a list of rows, each once and in order."""
    last: Key | None = None
    for row in rows:
        if row.key != last and row.key[0] in SELECTABLE:
            yield row.key
        last = row.key
