"""A page of history: bounded in messages, in bytes and in rows read; each text is in it once.

    read(...) ──rows──► HistoryPage.take ──► entries, items      until it is full or the log ends

`limit` counts messages; edits and deletes do not count, so a page may need more than one read, and
one message that was edited 500 times would fill megabytes. An edit has the text of its message as
it is now. So each text is sent once: with the message if that is in the page, else with its latest
edit there; the other edits have `null`, which changes nothing that a client holds
(docs/protocol.md, section 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from chatd.core.conversation import Conversation
from chatd.postgres.history_reads import EntryReads
from chatd.protocol import MESSAGE, History, Stored

# What is made at once for one client, and waits in memory for it. 100 messages of 2 KB fit, and a
# slow line takes it in a second (2 Mbit/s)
PAGE_BYTES_MAX: Final = 262_144
SCAN_FACTOR: Final = 4  # reads of a page at most, each of as many rows as messages are wanted


class HistoryPage:
    """Takes entries one after another, all in one direction.

    `encode` makes the item of the answer from an entry.
    """

    def __init__(self, messages_max: int, encode: Callable[[Stored], bytes]) -> None:
        self.entries: list[Stored] = []
        self.items: list[bytes] = []
        self._room = messages_max
        self._encode = encode
        self._bytes = 0
        self._text: dict[int, int] = {}  # seq of a message -> index of the entry that has its text

    @property
    def wanted(self) -> int:
        """Rows to read next: the messages that fit, and one that shows whether there are more."""
        return self._room + 1

    def take(self, e: Stored) -> bool:
        """Add an entry; False if it does not fit, and the page ends before it.

        A page has at least one entry, whatever its size.
        """
        if e.kind == MESSAGE and not self._room:
            return False
        about = e.seq if e.ref is None else e.ref
        place = self._text.get(about) if e.body is not None else None
        if (
            place is not None
            and (self.entries[place].kind == MESSAGE or self.entries[place].seq > e.seq)
            and e.kind != MESSAGE
        ):
            e, place = e._replace(body=None), None
        item, saved = self._encode(e), 0
        if place is not None:
            shorter = self.entries[place]._replace(body=None)
            saved = len(self.items[place]) - len(shorter_item := self._encode(shorter))
        if self.items and self._bytes + len(item) - saved > PAGE_BYTES_MAX:
            return False
        if place is not None:
            self.entries[place], self.items[place] = shorter, shorter_item
        if e.body is not None:
            self._text[about] = len(self.items)
        self.entries.append(e)
        self.items.append(item)
        self._bytes += len(item) + 1 - saved
        self._room -= e.kind == MESSAGE
        return True


async def read(pages: EntryReads, conv: Conversation, request: History, page: HistoryPage) -> bool:
    """Fill a page; gives whether there is more in that direction. Raises what the reads raise.

    To be called within one turn of the user: then as many pages are begun as there are turns. With
    a turn for each read, all requested pages were begun, and waited for their next turn with rows
    in memory: 250 KB each, 200 MB for 100 users who read one message's 1,000 edits.
    """
    forwards = request.after is not None
    after = max(request.after or 0, conv.floor - 1)
    before = min(request.before or conv.head + 1, conv.head + 1)
    for _ in range(SCAN_FACTOR):
        wanted = page.wanted
        if forwards:
            rows = await pages.entries_after(conv.id, after, conv.head, wanted)
        else:
            rows = await pages.entries_before(conv.id, before, conv.floor, wanted)
        if not all(page.take(e) for e in rows):
            break
        if len(rows) < wanted:
            return False
        after = before = rows[-1].seq
    return _beyond(conv, page.entries, forwards)


def _beyond(conv: Conversation, entries: list[Stored], forwards: bool) -> bool:
    if not entries:
        return False
    return entries[-1].seq < conv.head if forwards else entries[-1].seq > conv.floor
