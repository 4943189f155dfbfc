"""The line to search in what is loaded: it says what is looked for, the app says what is found."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Input


class SearchBox(Input):
    """Hidden until it is asked for."""

    DEFAULT_CSS = """
    SearchBox { border: none; height: 1; padding: 0 1; display: none; background: $boost; }
    SearchBox:focus { border: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,enter", "step(-1)", "Earlier", priority=True),
        Binding("down", "step(1)", "Later"),
        Binding("escape", "close", "Done"),
    ]

    class Step(Message):
        """To the hit before (-1) or after (1)."""

        def __init__(self, by: int) -> None:
            super().__init__()
            self.by = by

    class Closed(Message):
        """The search is over."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id, placeholder="search in what is loaded")

    def action_step(self, by: int) -> None:
        """Another hit."""
        self.post_message(self.Step(by))

    def action_close(self) -> None:
        """Done."""
        self.post_message(self.Closed())
