"""The widget that lists the conversations: presence, name, typing, what waits, and how much is
unread.

    ● bob                 3      ● online   ◐ away   ○ offline   nothing: not known
    ○ carol           draft
    ● dave            !! 1

The signs differ in shape, so that no colour is needed.
"""

from __future__ import annotations

from textual.widgets import OptionList
from textual.widgets.option_list import Option

from chatd.tui.model import Model
from chatd.tui.wording import listed


class ConversationList(OptionList):
    """An option's id is the name of its peer."""

    DEFAULT_CSS = """
    ConversationList { border: none; padding: 0; height: 1fr; scrollbar-size-vertical: 1; }
    ConversationList:focus { border: none; }
    """

    def __init__(self, id: str) -> None:
        super().__init__(id=id, markup=False, compact=True)
        self._shown: list[tuple[str, str]] = []

    def show(self, model: Model, drafts: dict[str, str], now: float) -> None:
        """Draw the list as it is now; what is highlighted stays so."""
        width = max(8, self.scrollable_content_region.width - 2)
        lines = [(it.peer, listed(model, it, drafts, now, width)) for it in model.listing()]
        shown = [(peer, str(text)) for peer, text in lines]
        if shown == self._shown:
            return
        if [peer for peer, _ in shown] == [peer for peer, _ in self._shown]:
            for n, ((_, text), before) in enumerate(zip(lines, self._shown, strict=True)):
                if str(text) != before[1]:
                    self.replace_option_prompt_at_index(n, text)
        else:
            chosen = self.highlighted_option
            peer = model.opened if chosen is None else chosen.id
            top = self.scroll_offset.y
            self.set_options(Option(text, id=peer) for peer, text in lines)
            self.highlighted = next((n for n, (name, _) in enumerate(lines) if name == peer), None)
            self.scroll_to(y=top, animate=False)
        self._shown = shown

    def point_at(self, peer: str) -> None:
        """Highlight the conversation with `peer`, if it is listed."""
        if any(name == peer for name, _ in self._shown):
            self.highlighted = self.get_option_index(peer)
