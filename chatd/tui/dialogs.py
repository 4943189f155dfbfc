"""What stands on top of the chat: a new conversation, a deletion, the end, the keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final, TypeAlias

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from chatd.ids import user_id
from chatd.tui.text import inert

Named: TypeAlias = Callable[[str | None], None]

KEYS: Final = """\
anywhere
  Ctrl+N    a new conversation
  Ctrl+L    the list
  Ctrl+F    search in what is loaded
  Tab       the next part
  F1        this page
  Ctrl+Q    quit
in the list
  Up, Down  choose    Enter  open
writing
  Enter     send
  Ctrl+J    new line, or Alt+Enter
  Up        in an empty composer:
            edit your last message
  Esc       end an edit; the list
in the log
  Up, Down  select a message
  e  edit   d  delete   c  copy
  r  send again what has failed
  x  give up what has failed
  PgUp, PgDn, Home, End
searching
  Enter     the hit before (or Up)
  Down      the hit after
  Esc       done
signs of your messages
  ..   sending
  ✓    sent: the server has it
  ✓✓   delivered
  ✓✓✓  read
  !!   failed
signs of people
  ●  online   ◐  away   ○  offline
The mouse works too.
"""

FRAME: Final = """
NewConversation, Confirm, Keys { align: center middle; }
.dialog { width: 60; max-width: 100%; height: auto; max-height: 100%; padding: 0 1; }
.dialog { border: round $primary; background: $surface; }
.dialog Input { border: none; height: 1; background: $boost; }
.dialog Horizontal { height: auto; }
.dialog Button { margin: 0 1 0 0; }
.dialog VerticalScroll { height: auto; max-height: 100%; }
.fault { text-style: bold; color: $error; }
"""


class NewConversation(ModalScreen[str | None]):
    """Asks for a user id; gives it, or None."""

    CSS = FRAME
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Close")]

    def compose(self) -> ComposeResult:
        """One line to write in."""
        with Vertical(classes="dialog"):
            yield Static("With whom? Write a user id and press Enter.", markup=False)
            yield Input(placeholder="user id", id="peer")
            yield Static("", classes="fault", markup=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take it, if it can be a user id."""
        try:
            self.dismiss(user_id(event.value.strip()))
        except ValueError as e:
            self.query_one(".fault", Static).update(inert(f"that is no user id: {e}"))


class Confirm(ModalScreen[bool]):
    """A question with two answers; the harmless one is chosen already."""

    CSS = FRAME
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(False)", "No"),
        Binding("y", "dismiss(True)", "Yes"),
        Binding("n", "dismiss(False)", "No"),
    ]

    def __init__(self, question: str, yes: str, no: str) -> None:
        super().__init__()
        self._question, self._yes, self._no = question, yes, no

    def compose(self) -> ComposeResult:
        """The question and its answers."""
        with Vertical(classes="dialog"):
            with VerticalScroll():
                yield Static(inert(self._question, lines=True), markup=False)
            with Horizontal():
                yield Button(f"{self._no} (n)", id="no", compact=True)
                yield Button(f"{self._yes} (y)", id="yes", compact=True, variant="error")

    def on_mount(self) -> None:
        """The harmless answer has the focus."""
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """By mouse, or by Enter."""
        self.dismiss(event.button.id == "yes")


class Keys(ModalScreen[None]):
    """All keys and signs."""

    CSS = FRAME
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q,enter", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        """A page that scrolls."""
        with VerticalScroll(classes="dialog"):
            yield Static(KEYS, markup=False)
