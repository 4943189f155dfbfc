"""Holds how far this client is in every log, and the entries that wait for the app. Pure.

    the log of one conversation      ... taken ........ seq ............ head
                                          │   in `queue` │  still missing │ highest known to exist
                                          └ the app has them              └ a new push is head + 1

Guarantee: `take` gives every entry after the place where the client started exactly once and in
order of seq, per conversation, over any number of connections and restarts. The exceptions are
entries that retention has dropped since then, and a log that was reset (`Reset` says so).

Another epoch is another log, mostly with the same beginning: a failover to a standby that lagged, a
restore. A conversation goes on there after the last entry that is the same in both, by its seq and
time. The times of the last entries taken are kept for that (`proof`). History is asked where the
head does not settle it. Where none of them is in the new log, the conversation goes on at its head.
What was not taken is dropped and comes again from the new log, if that has it.

The bound on memory does not stop the connection. When the queue is full, or when the server says
that there is too much to send, a conversation falls *behind*: its pushes only raise `head`, and
history brings what lies between as there is room (`want`, `fetched`). So a slow app costs the
memory of `queue_max` entries and one page, and never stops the replies to its own requests.

The mark `since` may be used while for every conversation `head` >= its head at the mark: what is
not listed has then no entries that this client does not know of. All of a welcome is taken at once
(`enter`), or nothing of it.
"""

from __future__ import annotations

import enum
import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from chatd import protocol
from chatd.client.frames import KINDS, ConversationItem, Entry, Page, Reset, Welcome
from chatd.client.in_hand import InHand, Mark

QUEUE_MAX: Final = 1_000
CURSOR_BYTES: Final = 6  # of JSON around a conversation and a seq: "12":57,
RECENT_MAX: Final = 1_000  # entries taken whose times are kept, of all conversations: some 150 KB
PROOF_MAX: Final = 50  # of them, in one conversation: about one page of history


class Step(enum.Enum):
    """What a pushed entry was."""

    NEW = "new"  # it waits for the app
    KNOWN = "known"  # had before: ignored
    BEHIND = "behind"  # history will bring it
    JUMP = "jump"  # the connection broke its promise: reconnect


@dataclass(slots=True, eq=False)
class Place:
    """Of one conversation; see the drawing. `ts`: of the last entry, to name the recent ones.

    `taken_ts`: of the one at `taken`; 0: not known. `is_new`: it began while this client looked on,
    and nothing of it was taken. `proof`: seq -> time of entries taken from the log before. Until
    one of them is found in this log, `taken` and `seq` stand before them all.
    """

    peer: str
    taken: int
    seq: int
    head: int
    ts: int
    taken_ts: int = 0
    is_new: bool = False
    behind: bool = False
    proof: dict[int, int] | None = None


class Inbox:
    """Places in all conversations, and the queue.

    The caller calls `hello` before a connection, `enter` with its whole welcome, then `push`,
    `want` and `fetched` in order of arrival.
    """

    def __init__(self, queue_max: int = QUEUE_MAX) -> None:
        self.queue_max = queue_max
        self.epoch: str | None = None
        self.since: str | None = None
        self.places: dict[str, Place] = {}  # by conversation
        self.names: dict[str, str] = {}  # peer -> conversation
        self.queue: deque[Entry | Reset] = deque()
        self.on_entry: Callable[[Entry], None] = lambda _: None  # called with each at its arrival
        self.in_hand = InHand()
        self.gives_resets = False  # whether a Reset stands in the queue, where it happened
        self.was_reset = False  # once: a seq or a `c` that the app has may be void
        self._behind: OrderedDict[str, None] = OrderedDict()
        self._later: dict[str, float] = {}  # of those behind: history is not to be asked before this time
        self._named: frozenset[str] = frozenset()
        # (peer, seq) -> time of what was taken before `taken`, the latest last
        self._recent: OrderedDict[tuple[str, int], int] = OrderedDict()

    # ---- a new connection ------------------------------------------------------------------------

    def hello(self, room_bytes: int, cursors_max: int = protocol.CURSORS_MAX) -> dict[str, Any]:
        """The keys of `hello` that make it a resync; at most `room_bytes` of JSON.

        With no room at all, everything is listed.
        """
        self._named = frozenset()
        if self.epoch is None:
            return {}
        keys: dict[str, Any] = {"epoch": self.epoch}
        room_bytes -= 64 + len(self.epoch) + len(self.since or "")
        if room_bytes < 0:
            return {}
        if self.since is not None:
            keys["since"] = self.since
        # One that is behind is fetched by history anyway, so its cursor would bring the same
        # entries twice.
        current = ((place.ts, c, place.seq) for c, place in self.places.items() if place.seq == place.head)
        cursors = keys["cursors"] = {}
        for _, c, seq in heapq.nlargest(cursors_max, current):
            room_bytes -= len(c) + len(str(seq)) + CURSOR_BYTES
            if room_bytes < 0:
                break
            cursors[c] = seq
        self._named = frozenset(cursors)
        return keys

    def bare(self) -> dict[str, Any]:
        """Instead of `hello`, where a server refuses that: it lists everything.

        Nothing is dropped here.
        """
        self._named = frozenset()
        return {}

    def enter(self, welcome: Welcome) -> list[Reset]:
        """All of a welcome. Returns what the app must forget."""
        resets: list[Reset] = []
        if self.epoch is not None and self.epoch != welcome.epoch:
            resets = [Reset(None, None), *self._change_log(welcome.items)]
        for item in welcome.items:
            resets += self._list(item)
        # Also those that are not listed: the last connection may have ended before it brought all
        for c, place in self.places.items():
            if c not in self._named and place.seq < place.head:
                self._fall_behind(c, place)
        self.epoch, self.since = welcome.epoch, welcome.since
        self._later.clear()
        return self._tell(resets)

    def _tell(self, resets: list[Reset]) -> list[Reset]:
        self.was_reset = self.was_reset or bool(resets)
        if self.gives_resets:
            self.queue.extend(resets)
        return resets

    def _change_log(self, items: Iterable[ConversationItem]) -> list[Reset]:
        """Another epoch: all is dropped but how far the app has got with whom."""
        shown = self._shown()
        self.places.clear()
        self.names.clear()
        self.queue.clear()
        self._behind.clear()
        self._named = frozenset()
        self.in_hand.keep({item.peer for item in items if item.peer in shown})
        # With whom nothing was taken, or who is new, all is missing: `_list` sees to that.
        return [reset for item in items if item.peer in shown for reset in self._go_on(item, shown[item.peer])]

    def _shown(self) -> dict[str, dict[int, int]]:
        """By peer: seq -> time of the last entries that the app has; empty if not known."""
        recent: dict[str, dict[int, int]] = {}
        for (peer, seq), ts in self._recent.items():
            recent.setdefault(peer, {})[seq] = ts
        shown: dict[str, dict[int, int]] = {}
        for place in self.places.values():
            if place.proof:
                shown[place.peer] = place.proof
            elif place.taken and not place.is_new:
                times = {
                    seq: ts
                    for seq, ts in recent.get(place.peer, {}).items()
                    if place.taken - PROOF_MAX < seq <= place.taken
                }
                shown[place.peer] = times | ({place.taken: place.taken_ts} if place.taken_ts else {})
        return shown

    def _go_on(self, item: ConversationItem, proof: dict[int, int]) -> list[Reset]:
        """After which entry of this log? Those of `proof` were taken from the one before."""
        place = self.places[item.c] = Place(item.peer, item.head, item.head, item.head, item.ts, item.ts)
        self.names[item.peer] = item.c
        last = max(proof, default=0)
        if proof.get(item.head) == item.ts:
            self.in_hand.drop_after(item.peer, item.head)
            return [] if item.head == last else [Reset(item.c, item.peer)]
        if not proof or item.head < min(proof):
            self.in_hand.drop_after(item.peer, 0)
            return [Reset(item.c, item.peer)]
        place.proof, place.taken_ts = proof, 0
        place.taken = place.seq = min(proof) - 1
        return []

    def _prove(self, place: Place, proof: dict[int, int], page: Page) -> list[Reset]:
        """The first page after a change of the log: where do the two part?"""
        last = max(proof)
        same = max((entry.seq for entry in page.entries if proof.get(entry.seq) == entry.ts), default=0)
        place.proof = None
        if page.floor > last:
            return []
        if not same and min(proof) > 1:
            return [self._reset(page.c, place, page.head)]
        place.taken, place.seq, place.taken_ts = same, same, proof.get(same, 0)
        if not page.more or page.entries[-1].seq != same:
            self.in_hand.drop_after(place.peer, same)
        if same == last:
            return []
        if page.more and page.entries[-1].seq == same:  # the page ends before they part
            place.proof = {seq: ts for seq, ts in proof.items() if seq > same}
            return []
        return [Reset(page.c, place.peer)]

    def _list(self, item: ConversationItem) -> list[Reset]:
        place = self.places.get(item.c)
        if place is None:
            # After a first welcome every conversation is known; one that is not began after the
            # mark, so all of it is missing.
            first = self.epoch is None
            start = item.head if first else item.floor - 1
            self.places[item.c] = Place(item.peer, start, start, item.head, item.ts, item.ts if first else 0, not first)
            self.names[item.peer] = item.c
            return []
        if item.reset or item.head < place.seq:
            reset = self._reset(item.c, place, item.head)
            place.taken_ts = item.ts
            return [reset]
        place.head, place.ts = item.head, item.ts
        if item.c in self._named and not item.page:
            place.seq = max(place.seq, item.floor - 1)  # the server goes on from here by itself
            self._catch_up(item.c, place)
        elif place.seq < place.head:
            self._fall_behind(item.c, place)
        else:
            self._catch_up(item.c, place)
        return []

    # ---- entries ---------------------------------------------------------------------------------

    def push(self, entry: Entry) -> Step:
        """An entry of the connection, or the `ok` that takes its place."""
        place = self.places.get(entry.c)
        if place is None:
            place = self.places[entry.c] = Place(entry.peer, 0, 0, 0, entry.ts)
            self.names[entry.peer] = entry.c
        place.head, place.ts = max(place.head, entry.seq), max(place.ts, entry.ts)
        if entry.seq <= place.seq:
            return Step.KNOWN
        if place.behind:
            return Step.BEHIND
        if entry.seq > place.seq + 1:
            return Step.JUMP
        if len(self.queue) >= self.queue_max:
            self._fall_behind(entry.c, place)
            return Step.BEHIND
        self._accept(entry, place)
        return Step.NEW

    def want(self, now: float = 0.0) -> tuple[str, int] | None:
        """What to ask history for: (conversation, after). None: nothing, or no room."""
        if len(self.queue) >= self.queue_max:
            return None
        c = next((c for c in self._behind if self._later.get(c, 0.0) <= now), None)
        return None if c is None else (c, self.places[c].seq)

    def put_off(self, c: str, until: float) -> None:
        """History of this conversation cannot be had before `until`; the others go on."""
        if c in self._behind:
            self._behind.move_to_end(c)
            self._later[c] = until

    def wake_at(self) -> float | None:
        """When `want` has something again that was put off; None: nothing was."""
        return min(self._later.values(), default=None) if len(self.queue) < self.queue_max else None

    def fetched(self, after: int, page: Page) -> tuple[bool, list[Reset]]:
        """The answer to what `want` asked for.

        False: it brought nothing, so asking again would not either.
        """
        place = self.places.get(page.c)
        if place is None or not place.behind or place.seq != after:
            return True, []
        if page.head < place.seq:
            return True, self._tell([self._reset(page.c, place, page.head)])
        resets = [] if place.proof is None else self._tell(self._prove(place, place.proof, page))
        place.head = max(place.head, page.head)
        place.seq = max(place.seq, page.floor - 1)
        unreadable = set(page.unreadable)
        for entry in _after(page.entries, place.seq):
            self._step_over(place, unreadable)
            if entry.seq == place.seq + 1:
                self._accept(entry, place)
        self._step_over(place, unreadable)
        if place.seq >= place.head:
            self._catch_up(page.c, place)
        else:
            self._behind.move_to_end(page.c)  # the next one's turn
        return place.seq > after or not place.behind, resets

    @staticmethod
    def _step_over(place: Place, unreadable: set[int]) -> None:
        while place.seq + 1 in unreadable:
            place.seq += 1

    def take(self) -> Entry | None:
        """The next entry for the app, which from now on has it and has handled it."""
        while isinstance(entry := self.take_any(), Reset):
            pass
        return entry

    def take_any(self, *, in_hand: bool = False) -> Entry | Reset | None:
        """The next entry or reset.

        `in_hand`: an entry is handled once `in_hand.done` is called with it, and not before.
        """
        if not self.queue:
            return None
        entry = self.queue.popleft()
        if isinstance(entry, Reset):
            return entry
        place = self.places[entry.c]
        if in_hand:
            self.in_hand.gave(entry, Mark(place.taken, place.taken_ts, place.is_new))
        if place.taken_ts:
            self._recent[(place.peer, place.taken)] = place.taken_ts
            self._recent.move_to_end((place.peer, place.taken))
            if len(self._recent) > RECENT_MAX:
                self._recent.popitem(last=False)
        place.taken, place.taken_ts, place.is_new = entry.seq, entry.ts, False
        return entry

    def _accept(self, entry: Entry, place: Place) -> None:
        place.seq = entry.seq
        # Others are of a later version of the protocol: they have a place in the log, and nothing
        # to show
        if entry.kind in KINDS:
            self.queue.append(entry)
            self.on_entry(entry)

    def _fall_behind(self, c: str, place: Place) -> None:
        place.behind = True
        self._behind.setdefault(c, None)

    def _catch_up(self, c: str, place: Place) -> None:
        place.behind = False
        self._behind.pop(c, None)
        self._later.pop(c, None)

    def _reset(self, c: str, place: Place, head: int) -> Reset:
        self.in_hand.drop_after(place.peer, 0)
        if any(entry.c == c for entry in self.queue):
            kept = [entry for entry in self.queue if entry.c != c]
            self.queue.clear()
            self.queue.extend(kept)
        place.taken = place.seq = place.head = head
        place.taken_ts, place.is_new, place.proof = 0, False, None
        self._catch_up(c, place)
        return Reset(c, place.peer)

    # ---- over a restart --------------------------------------------------------------------------

    def save(self, done: Entry | None = None) -> dict[str, Any]:
        """What the app has handled, `done` too, as JSON can hold it."""
        at = self.places if not self.in_hand.size else {c: self._handled(p, done) for c, p in self.places.items()}
        places = {c: [p.peer, p.taken, p.head, p.ts] for c, p in at.items()}
        times = {c: _times(p) for c, p in at.items() if p.proof or p.is_new or p.taken_ts}
        return {"epoch": self.epoch, "since": self.since, "places": places, "times": times}

    def _handled(self, place: Place, done: Entry | None) -> Place:
        """The place as it was before the first entry that is still in hand."""
        mark = self.in_hand.first(place.peer, done)
        if mark is None:
            return place
        if not place.proof:
            return replace(place, **mark._asdict())
        proof = {seq: ts for seq, ts in place.proof.items() if seq <= mark.taken}
        proof |= {mark.taken: mark.taken_ts} if mark.taken_ts else {}
        taken = min(proof) - 1 if proof else mark.taken
        return replace(place, taken=taken, taken_ts=0, is_new=mark.is_new, proof=proof or None)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """What `save` gave; into a fresh inbox."""
        self.epoch, self.since = saved["epoch"], saved["since"]
        for c, (peer, taken, head, ts) in saved["places"].items():
            self.places[c] = Place(peer, taken, taken, head, ts)
            self.names[peer] = c
        for c, times in saved.get("times", {}).items():  # a state of an earlier release has none
            place, proof = self.places[c], {int(seq): int(ts) for seq, ts in times}
            place.is_new, place.taken_ts = not proof, proof.get(place.taken, 0)
            place.proof = None if not proof or place.taken_ts else proof


def _after(entries: Sequence[Entry], seq: int) -> Sequence[Entry]:
    """The entries of a page after `seq`.

    A page has a text once: with its message, if that is in the page. A message up to `seq` is not
    given to the app again, so its text goes to its latest edit.
    """
    texts = {entry.seq: entry.body for entry in entries if entry.seq <= seq and entry.kind == "message"}
    if not texts:
        return entries
    behind = []
    for entry in reversed(entries):
        if entry.kind == "edit" and entry.ref in texts:
            entry = replace(entry, body=texts.pop(entry.ref))
        if entry.seq > seq:
            behind.append(entry)
    return behind[::-1]


def _times(place: Place) -> list[tuple[int, int]]:
    """The times of a place for `save`; empty: it is new."""
    return list(place.proof.items()) if place.proof else [] if place.is_new else [(place.taken, place.taken_ts)]
