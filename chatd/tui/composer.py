"""The widget to write in: several lines, sent by Enter, with a limit in bytes as the server counts.

Enter sends; Ctrl+J, Alt+Enter and Shift+Enter (where the terminal tells it apart) begin a new line.
What is pasted loses its control characters, which a server refuses. What it shows is inert too,
because a message from elsewhere may be edited here.
"""

from __future__ import annotations

from typing import ClassVar, Final

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from chatd.tui.text import one_for_one, size_of

NEAR: Final = 0.8  # of the limit: from here on it is shown
ROWS_MAX: Final = 6
NEW_LINE: Final = ("ctrl+j", "alt+enter", "shift+enter")


class Composer(TextArea):
    """`body_max`: bytes of UTF-8 that the server takes."""

    DEFAULT_CSS = f"""
    Composer {{ height: auto; max-height: {ROWS_MAX}; min-height: 1; border: none; padding: 0 1; }}
    Composer:focus {{ border: none; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Send"),  # shown and clicked here; the keys are taken by on_key
    ]

    class Submitted(Message):
        """Enter was pressed on a text that the server would take."""

        def __init__(self, body: str) -> None:
            super().__init__()
            self.body = body

    class EditLast(Message):
        """Up was pressed where nothing is written."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id, compact=True, highlight_cursor_line=False, placeholder="Write a message")
        self.body_max = 2_048

    @property
    def size_said(self) -> str:
        """What to say of the size: nothing until it nears the limit."""
        size = size_of(self.text)
        if size > self.body_max:
            return f"{size:,} of {self.body_max:,} bytes: {size - self.body_max:,} too many"
        return f"{size:,} of {self.body_max:,} bytes" if size >= NEAR * self.body_max else ""

    def get_line(self, line_index: int) -> Text:
        """A line as it is shown; as long as it is."""
        return Text(one_for_one(self.document.get_line(line_index)), end="", no_wrap=True)

    def on_key(self, event: events.Key) -> None:
        """Enter and its relatives, in their turn among the keys.

        A binding with priority would overtake characters that are still in this widget's queue, and
        send half of a text.
        """
        if event.key == "enter":
            self.action_submit()
        elif event.key in NEW_LINE:
            self.action_new_line()
        else:
            return
        event.prevent_default()
        event.stop()

    def action_submit(self) -> None:
        """Send it and empty this, if it is not too long and not empty."""
        body = self.text.strip("\n")
        if body.strip() and size_of(body) <= self.body_max:
            self.load_text("")  # before what is typed next
            self.post_message(self.Submitted(body))
        elif body:
            self.app.bell()

    def action_new_line(self) -> None:
        """A new line at the cursor."""
        self.insert("\n")

    def on_paste(self, event: events.Paste) -> None:
        """Insert what a server takes of it, instead of all of it."""
        event.prevent_default()
        event.stop()
        text = event.text.replace("\r\n", "\n").replace("\r", "\n")
        result = self.replace("".join(c for c in text if c in "\n\t" or not _is_control(c)), *self.selection)
        self.move_cursor(result.end_location)

    def action_cursor_up(self, select: bool = False) -> None:
        """As ever; in an empty composer: edit the last message."""
        if self.text:
            super().action_cursor_up(select)
        else:
            self.post_message(self.EditLast())


def _is_control(c: str) -> bool:
    return ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0
