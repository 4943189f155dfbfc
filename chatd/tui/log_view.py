"""The widget of the open conversation: rows, a selected message, and a place that does not jump.

It draws only the lines on the screen. `show` takes all rows again. If the newest line was on the
screen it stays there (`follows`); otherwise the first message on the screen stays where it is,
whatever arrived above it, or however the lines are wrapped now. Near the upper end it asks for
older messages (`NeedOlder`), once per arrival.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from chatd.tui.model import ConversationView
from chatd.tui.rows import SELECTABLE, Key, Row, RowMaker, keys_of

SELECTED: Final = Style(reverse=True)


class LogView(ScrollView, can_focus=True):
    """See the module. Keys act on the selected message; the app does what they ask."""

    DEFAULT_CSS = "LogView { height: 1fr; overflow-y: scroll; scrollbar-size-vertical: 1; padding: 0 1; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "select(-1)", "Earlier", show=False),
        Binding("down,j", "select(1)", "Later", show=False),
        Binding("pageup,b", "page(-1)", "Up a page", show=False),
        Binding("pagedown,space", "page(1)", "Down a page", show=False),
        Binding("home,g", "oldest", "Oldest", show=False),
        Binding("end,G", "newest", "Newest", show=False),
        Binding("e", "ask('edit')", "Edit"),
        Binding("d,delete", "ask('delete')", "Delete"),
        Binding("c", "ask('copy')", "Copy"),
        Binding("r", "ask('retry')", "Retry", show=False),
        Binding("x", "ask('discard')", "Give up", show=False),
    ]

    class NeedOlder(Message):
        """What is loaded ends near the top of the screen."""

    class Newest(Message):
        """The newest line has come onto the screen."""

    class OnMessage(Message):
        """A key that acts on the selected message."""

        def __init__(self, what: str, key: Key) -> None:
            super().__init__()
            self.what, self.key = what, key

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.selected: Key | None = None
        self.follows = True
        self.rows: list[Row] = []
        self._it: ConversationView | None = None
        self._wanted: re.Pattern[str] | None = None
        self._maker = RowMaker()
        self._is_placing = False
        self._asked_at = 0  # lowest seq when older ones were asked for last

    # ---- what is shown ---------------------------------------------------------------------------

    def show(self, it: ConversationView | None, wanted: re.Pattern[str] | None = None) -> None:
        """Draw this conversation as it is now, with what `wanted` finds marked."""
        if it is not self._it:
            self.selected, self.follows, self._asked_at = None, True, 0
        self._it, self._wanted = it, wanted
        anchor = None if self.follows else self._anchor()
        width = self.scrollable_content_region.width
        self.rows = [] if it is None or width <= 0 else self._maker.rows(it, width, wanted)
        self._is_placing = True
        self.virtual_size = Size(width, len(self.rows))
        if anchor is None:
            self.scroll_to(y=self.max_scroll_y, animate=False, force=True)
        else:
            self.scroll_to(y=self._first(anchor[0]) - anchor[1], animate=False, force=True)
        self._is_placing = False
        self.refresh()
        self._look()

    def _anchor(self) -> tuple[Key, int] | None:
        """The first message on the screen, and its first line's place below the upper edge."""
        top = self.scroll_offset.y
        for row in self.rows[top:]:
            if row.key[0] in SELECTABLE:
                return row.key, self._first(row.key) - top
        return None

    def _first(self, key: Key) -> int:
        return next((y for y, row in enumerate(self.rows) if row.key == key), self.scroll_offset.y)

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        y += self.scroll_offset.y
        if y >= len(self.rows):
            return Strip.blank(self.size.width, self.rich_style)
        row = self.rows[y]
        strip = Strip(row.text.render(self.app.console)).extend_cell_length(self.size.width).crop(0, self.size.width)
        if row.key == self.selected:
            strip = strip.apply_style(SELECTED)
        return strip.apply_style(self.rich_style)

    # ---- where it stands -------------------------------------------------------------------------

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Somebody scrolled, or `show` placed the rows."""
        super().watch_scroll_y(old_value, new_value)
        if not self._is_placing:
            self.follows = round(new_value) >= self.max_scroll_y
            self._look()

    def _look(self) -> None:
        """Ask for older messages near the upper end; say when the newest line is on the screen."""
        it = self._it
        if it is None or not self.is_attached:
            return
        if it.has_older and self.scroll_offset.y < max(2, self.size.height) and self._asked_at != it.lowest:
            self._asked_at = it.lowest
            self.post_message(self.NeedOlder())
        if self.follows:
            self.post_message(self.Newest())

    def on_resize(self, event: Resize) -> None:
        """Wrap for the new width."""
        self.show(self._it, self._wanted)

    # ---- keys and mouse --------------------------------------------------------------------------

    def select(self, key: Key | None) -> None:
        """Select a message and bring it onto the screen."""
        self.selected = key
        places = [y for y, row in enumerate(self.rows) if row.key == key]
        if places:
            top, height = self.scroll_offset.y, self.size.height
            if places[0] < top:
                self.scroll_to(y=places[0], animate=False, force=True)
            elif places[-1] >= top + height:
                self.scroll_to(y=min(places[0], places[-1] - height + 1), animate=False, force=True)
        self.refresh()

    def action_select(self, step: int) -> None:
        """The message before or after the selected one; the newest where none is."""
        keys = list(keys_of(self.rows))
        if not keys:
            return
        if self.selected not in keys:
            self.select(keys[-1])
            return
        place = keys.index(self.selected) + step
        if place < 0:
            self.scroll_to(y=0, animate=False, force=True)
        elif place >= len(keys):
            self.action_newest()
        else:
            self.select(keys[place])

    def action_page(self, step: int) -> None:
        """A screen up or down, one line of it in common."""
        self.scroll_to(y=self.scroll_offset.y + step * max(1, self.size.height - 1), animate=False, force=True)

    def action_oldest(self) -> None:
        """The oldest line that is loaded."""
        self.scroll_to(y=0, animate=False, force=True)

    def action_newest(self) -> None:
        """The newest line, with nothing selected."""
        self.selected = None
        self.scroll_to(y=self.max_scroll_y, animate=False, force=True)
        self.refresh()

    def action_ask(self, what: str) -> None:
        """Something with the selected message."""
        if self.selected is not None:
            self.post_message(self.OnMessage(what, self.selected))

    def on_click(self, event: Click) -> None:
        """Select what was clicked."""
        y = event.y + self.scroll_offset.y
        if y < len(self.rows) and self.rows[y].key[0] in SELECTABLE:
            self.select(self.rows[y].key)
