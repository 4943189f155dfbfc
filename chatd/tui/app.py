"""The screen of `chatd chat`, and what its keys do.

The list of conversations stands beside the open one; below `WIDE` columns they take turns. The
model changes at any time, in bursts; the screen is drawn `DRAW_S` after the first change of a
burst.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import ClassVar, Final

from rich.text import Text
from textual import events, on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Footer, Input, OptionList, Static, TextArea

from chatd.client import Client, Message
from chatd.tui import dialogs, wording
from chatd.tui.composer import Composer
from chatd.tui.controller import Controller
from chatd.tui.conversation_list import ConversationList
from chatd.tui.log_view import LogView
from chatd.tui.model import Model, Outgoing
from chatd.tui.rows import Key, found, pattern
from chatd.tui.search_box import SearchBox

WIDE: Final = 72  # columns for both parts
DRAW_S: Final = 0.03
TICK_S: Final = 1.0  # typing and notes end by time
NOTE_S: Final = 8.0
IDLE_S: Final = 300.0  # without a key: away


class ChatApp(App[None]):
    """One person's chat on one terminal. `first`: whom to open at the start."""

    CSS = """
    #list { width: 26; border-right: solid $panel; }
    #talk { width: 1fr; }
    #title, #size, #status { height: 1; padding: 0 1; }
    #title { background: $panel; }
    #status { background: $boost; }
    #size { color: $warning; text-style: bold; display: none; }
    #composer { background: $boost; }
    .-narrow #list { display: none; width: 100%; border: none; }
    .-narrow.listing #list { display: block; }
    .-narrow.listing #talk { display: none; }
    """
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012 (textual declares no class variable)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "keys", "Keys", priority=True),
        Binding("ctrl+n", "new", "New", priority=True),
        Binding("ctrl+l", "list", "List", priority=True),
        Binding("ctrl+f", "search", "Search", priority=True),
        Binding("ctrl+q", "quit", "Quit", priority=True),
        Binding("escape", "leave", "Back", show=False),
    ]

    def __init__(self, client: Client, first: str | None = None) -> None:
        super().__init__()
        self.animation_level = "none"  # an animation would go on to where a line was
        self.controller = Controller(client, self.draw_soon)
        self.drafts: dict[str, str] = {}
        self._first = first
        self.people, self.log_view, self.composer = ConversationList("list"), LogView("log"), Composer("composer")
        self.search_box, self.title_line, self.size_line = SearchBox("search"), _static("title"), _static("size")
        self.status_line = _static("status")
        self._is_drawing_due = False
        self._editing: tuple[str, int] | None = None
        self._loaded_text = ""  # what a program put into the composer is not typing
        self._wanted: re.Pattern[str] | None = None
        self._note, self._note_until = "", 0.0
        self._active_at = time.monotonic()
        self._is_away = False

    @property
    def model(self) -> Model:
        """What is shown."""
        return self.controller.model

    def compose(self) -> ComposeResult:
        """The parts of the screen."""
        with Horizontal():
            yield self.people
            with Vertical(id="talk"):
                yield self.title_line
                yield self.log_view
                yield self.search_box
                yield self.size_line
                yield self.composer
        yield self.status_line
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Connect, and show what there is from then on."""
        self.run_worker(self.controller.run(), name="controller")
        self.set_interval(TICK_S, self._tick)
        if self._first is None:
            self.action_list()
        else:
            self.show(self._first)
        self._draw()

    # ---- drawing ---------------------------------------------------------------------------------

    def draw_soon(self) -> None:
        """The model has changed."""
        if not self._is_drawing_due and self.is_running:
            self._is_drawing_due = True
            self.set_timer(DRAW_S, self._draw)

    def _draw(self) -> None:
        self._is_drawing_due = False
        now, model = time.monotonic(), self.model
        if model.notes:
            self._note, self._note_until = model.notes.pop(0), now + NOTE_S
        it = model.shown
        self.composer.body_max = self.controller.client.limits.body_bytes
        self.composer.disabled = it is None
        self.people.show(model, self.drafts, now)
        self.log_view.show(it, self._wanted)
        self.title_line.update(wording.title(model, now, datetime.now(UTC).astimezone().date()))
        note = self._note if now < self._note_until else ""
        self.status_line.update(wording.status(model, note, is_editing=self._editing is not None))
        said = self.composer.size_said
        self.size_line.display = bool(said)
        self.size_line.update(Text(said))

    def _tick(self) -> None:
        is_away = not self.app_focus or time.monotonic() - self._active_at > IDLE_S
        if is_away is not self._is_away and self.model.line != "stopped":
            self._is_away = is_away
            self.controller.away(is_away)
        self._draw()

    @property
    def _is_log_seen(self) -> bool:
        screens = self.screen_stack  # empty while the app ends
        if len(screens) != 1 or not self.app_focus:
            return False
        return not (screens[0].has_class("-narrow") and screens[0].has_class("listing"))

    async def on_event(self, event: events.Event) -> None:
        """Anything from the keyboard or the mouse: somebody is there."""
        if isinstance(event, events.InputEvent):
            self._active_at = time.monotonic()
        await super().on_event(event)

    # ---- conversations ---------------------------------------------------------------------------

    def show(self, peer: str) -> None:
        """Open the conversation with `peer`, and write there."""
        self._keep_draft()
        self._editing = None
        self.controller.open(peer)
        self._close_search()
        self._load_text(self.drafts.get(peer, ""))
        self.screen_stack[0].remove_class("listing")
        self.composer.disabled = False
        self.people.point_at(peer)
        self.composer.focus()
        self._draw()

    def _keep_draft(self) -> None:
        peer = self.model.opened
        if peer is not None and self._editing is None:
            self.drafts.pop(peer, None)
            if self.composer.text.strip():
                self.drafts[peer] = self.composer.text

    def _load_text(self, text: str) -> None:
        self._loaded_text = text
        self.composer.load_text(text)
        self.composer.move_cursor(self.composer.document.end)

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        if event.option.id is not None:
            self.show(event.option.id)

    def action_list(self) -> None:
        """Go to the list."""
        self.screen_stack[0].add_class("listing")
        self.people.focus()

    def action_new(self) -> None:
        """Ask with whom, and open that conversation."""

        def named(peer: str | None) -> None:
            if peer is not None:
                self.show(peer)

        self._ask(dialogs.NewConversation(), named)

    def action_keys(self) -> None:
        """Show the keys and signs."""
        if len(self.screen_stack) == 1:
            self.push_screen(dialogs.Keys())

    def _ask(self, dialog: dialogs.NewConversation, then: dialogs.Named) -> None:
        if len(self.screen_stack) == 1:
            self.push_screen(dialog, then)

    def action_leave(self) -> None:
        """Give up an edit; else from the log to the composer, and from there to the list."""
        if self._editing is not None:
            self._end_edit()
        elif self.focused is self.log_view and not self.composer.disabled:
            self.composer.focus()
        else:
            self.action_list()

    # ---- writing ---------------------------------------------------------------------------------

    @on(TextArea.Changed)
    def _typed(self) -> None:
        if self.composer.text != self._loaded_text and self._editing is None and self.composer.has_focus:
            self._loaded_text = ""
            self.controller.typed()
        self._keep_draft()
        self.draw_soon()

    @on(Composer.Submitted)
    def _submitted(self, event: Composer.Submitted) -> None:
        peer = self.model.opened
        if peer is None:
            return
        self.log_view.follows = True
        if self._editing is not None:
            to, seq = self._editing
            self.controller.edit(to, seq, event.body)
            self._end_edit(is_saved=True)
        else:
            self.controller.send(peer, event.body)
            self.drafts.pop(peer, None)
            self._keep_draft()  # of what was typed since

    def _edit(self, message: Message) -> None:
        peer = self.model.opened
        if peer is not None and message.body is not None:
            self._keep_draft()
            self._editing = (peer, message.seq)
            self._load_text(message.body)
            self.composer.focus()
            self.draw_soon()

    def _end_edit(self, *, is_saved: bool = False) -> None:
        self._editing = None
        if not self.composer.text or not is_saved:
            self._load_text(self.drafts.get(self.model.opened or "", ""))
        self.draw_soon()

    @on(Composer.EditLast)
    def _edit_last(self) -> None:
        it = self.model.shown
        if it is not None:
            own = (message for message in reversed(it.log) if message.own)
            last = next((message for message in own if message.body is not None), None)
            if last is not None:
                self._edit(last)

    # ---- one message -----------------------------------------------------------------------------

    @on(LogView.OnMessage)
    def _asked(self, event: LogView.OnMessage) -> None:
        it = self.model.shown
        if it is None:
            return
        kind, n = event.key
        if kind == "outgoing":
            outgoing = next((one for one in it.outgoing if one.n == n), None)
            if outgoing is not None:
                self._do_with_outgoing(event.what, outgoing)
        elif (message := it.log.get(n)) is not None:
            self._do_with_message(event.what, it.peer, message)

    def _do_with_outgoing(self, what: str, outgoing: Outgoing) -> None:
        match what:
            case "copy":
                self.copy_to_clipboard(outgoing.body)
            case "retry":
                self.controller.retry(outgoing)
            case "discard" | "delete":
                self.controller.discard(outgoing)
            case _:
                self.controller.note("it is not sent yet: r sends it again where it failed, x gives it up")

    def _do_with_message(self, what: str, peer: str, message: Message) -> None:
        if what in ("retry", "discard"):
            return
        if message.body is None:
            self.controller.note("it is deleted")
        elif what == "copy":
            self.copy_to_clipboard(message.body)
            self.controller.note("copied")
        elif not message.own:
            self.controller.note("only your own messages can be edited and deleted")
        elif what == "edit":
            self._edit(message)
        else:
            self._ask_deletion(peer, message)

    def _ask_deletion(self, peer: str, message: Message) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self.controller.delete(peer, message.seq)

        question = f"Delete this message for both?\n\n{wording.quoted(message.body or '')}"
        self.push_screen(dialogs.Confirm(question, "Delete", "Keep"), answered)

    # ---- the log ---------------------------------------------------------------------------------

    @on(LogView.NeedOlder)
    def _need_older(self) -> None:
        self.controller.load_older()

    @on(LogView.Newest)
    def _newest(self) -> None:
        if self._is_log_seen:
            self.controller.see()

    def action_search(self) -> None:
        """Search in the open conversation."""
        if self.model.shown is not None and len(self.screen_stack) == 1:
            self.screen.remove_class("listing")
            self.search_box.display = True
            self.search_box.focus()

    def _close_search(self) -> None:
        self.search_box.display = False
        self.search_box.value = ""
        self._wanted = None

    @on(SearchBox.Closed)
    def _searched(self) -> None:
        self._close_search()
        self.log_view.focus()
        self._draw()

    @on(Input.Changed, "#search")
    def _search_changed(self, event: Input.Changed) -> None:
        self._wanted = pattern(event.value)
        self._draw()
        self._go_to_hit(0)

    @on(SearchBox.Step)
    def _search_step(self, event: SearchBox.Step) -> None:
        self._go_to_hit(event.by)

    def _go_to_hit(self, by: int) -> None:
        it = self.model.shown
        if it is None or self._wanted is None:
            return
        hits: list[Key] = found(it, self._wanted)
        if not hits:
            self.controller.note("not found in what is loaded; scroll up to load more")
            return
        at = hits.index(self.log_view.selected) if self.log_view.selected in hits else None
        at = len(hits) - 1 if at is None else min(len(hits) - 1, max(0, at + by))
        self.log_view.select(hits[at])
        self.controller.note(f"{at + 1} of {len(hits)} in what is loaded")

    # ---- the end ---------------------------------------------------------------------------------

    async def action_quit(self) -> None:
        """Quit; what is not sent is shown first."""
        unsent = wording.unsent(self.model, self.drafts)
        if not unsent or len(self.screen_stack) > 1:
            self.exit()
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self.exit()

        question = "Not sent yet:\n" + "\n".join(unsent) + "\n\nIt is shown once more when the chat has ended."
        self.push_screen(dialogs.Confirm(question, "Quit", "Stay"), answered)


def _static(id: str) -> Static:
    return Static("", id=id, markup=False)
