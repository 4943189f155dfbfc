"""What became of each message. Pure.

A conversation has two ends, 2c and 2c + 1; end e's other one is e ^ 1, and `owner[e]` is the user
there (for users in pairs: e itself). Messages are numbered in the order they are due: `k`, sent
from an end. A user has `devices` connections; message k is sent from one of them, its own
`device_of(k)`, and is to be seen by all of the peer's and by the sender's others. The rules:

    lost         not acked, or not delivered to everybody who is to see it, when the run is over
    duplicated   acked or delivered to a connection once more, or acked as a `dup` though nothing was sent twice
    reordered    came after a later one: on a connection a conversation's seqs (of entries and of `ok`s, which take
                 an entry's place) rise,
                 and so do the numbers of what the peer sent from one device
    stray        an ack or entry of a message that this connection did not send, or was not to get

A message whose connection was cut before its ack has an unknown outcome (`cut`) and is sent again.
It may then be acked as a `dup`, and get its own entry from a resync, in any order: each is an ack.
Not both an `ok` that is no dup and the entry, and none of them twice.

All scenarios and the tests share this one judge; the tests hand it seeded losses, duplicates and
swaps.
"""

from __future__ import annotations

import enum
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

DEVICES_MAX: Final = 8  # who has seen a message is a bit each, of 16


class Again(enum.IntFlag):
    """What came to a message that was cut: an `ok`, one that says `dup`, its own entry."""

    OK = 1
    DUP = 2
    ENTRY = 4


NOT_AFTER: Final = {
    Again.OK: Again.OK | Again.DUP | Again.ENTRY,
    Again.DUP: Again.OK | Again.DUP,
    Again.ENTRY: Again.OK | Again.ENTRY,
}


@dataclass(frozen=True, slots=True)
class Account:
    """The sum over a range of messages; `duplicated`, `reordered` and `stray` are of the whole run."""

    sent: int
    acked: int
    delivered: int
    lost: int
    duplicated: int
    reordered: int
    stray: int

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.reordered or self.stray)


class Ledger:
    """`sender[k]` is the end that message k is sent from.

    Times are seconds of one clock; NaN: it did not happen.
    """

    __slots__ = (
        "_acked",
        "_cut",
        "_full",
        "_last_k",
        "_last_seq",
        "_owner",
        "_seen",
        "_sender",
        "acked_at",
        "acks",
        "deliveries",
        "deliveries_at",
        "devices",
        "due_at",
        "duplicated",
        "ends",
        "n",
        "reordered",
        "sent_at",
        "stray",
    )

    def __init__(self, ends: int, owner: Sequence[int] | None = None, devices: int = 1) -> None:
        assert 1 <= devices <= DEVICES_MAX
        self._owner: Sequence[int] = range(ends) if owner is None else owner
        self.n, self.ends, self.devices = 0, ends, devices
        self._full = (1 << 2 * devices) - 1
        self._sender: array[int] = array("l")
        self._acked, self._seen = bytearray(), array("H")
        self._cut: dict[int, Again] = {}  # message that was cut -> what has come since
        self.due_at, self.sent_at, self.acked_at, self.deliveries_at = (array("d") for _ in range(4))
        self._last_seq = [0] * (ends * devices)  # by end and device
        self._last_k = [-1] * (ends * devices * devices)  # by receiving end and device, and sending device
        self.acks = self.deliveries = 0  # messages, not frames
        self.duplicated = self.reordered = self.stray = 0

    def extend(self, sender: Iterable[int]) -> None:
        """Further messages, from these ends."""
        before = self.n
        self._sender.extend(sender)
        self.n = len(self._sender)
        more = self.n - before
        self._acked.extend(bytes(more))
        for k in range(before, self.n):  # the sender's own device sees the message by its ok
            self._seen.append(1 << self.devices + self.device_of(k))
        for times in (self.due_at, self.sent_at, self.acked_at, self.deliveries_at):
            times.extend(array("d", [math.nan]) * more)

    def device_of(self, k: int) -> int:
        """The device that message k is sent from: all of a user's in turns."""
        return k % self.devices

    def sender_of(self, k: int) -> int:
        return self._sender[k]

    def last_seq(self, end: int, device: int = 0) -> int:
        """The highest seq that this connection has seen in that conversation."""
        return self._last_seq[end * self.devices + device]

    def cut(self, k: int) -> None:
        """The connection that message k was sent on has ended without its ack."""
        self._cut[k] = Again(0)

    def acked(self, user: int, k: int, seq: int, at: float, dup: bool = False, device: int = 0) -> bool:
        """`user` got an `ok` to message k. Gives whether it is one of theirs, and the first."""
        if not 0 <= k < self.n or self._owner[self._sender[k]] != user or self.device_of(k) != device:
            self.stray += 1
            return False
        if k in self._cut:
            is_right = self._came_again(k, Again.DUP if dup else Again.OK)
        else:
            is_right = not self._acked[k] and not dup
        self.duplicated += not is_right
        if self._acked[k]:
            return False
        self._ack(k, at)
        if not dup:  # a dup stands outside the order
            self._in_order(self._sender[k] * self.devices + device, seq)
        return True

    def _ack(self, k: int, at: float) -> None:
        self._acked[k] = 1
        self.acks += 1
        self.acked_at[k] = at

    def _came_again(self, k: int, what: Again) -> bool:
        """Whether that is right beside what came before."""
        came = self._cut[k]
        self._cut[k] = came | what
        return not came & NOT_AFTER[what]

    def delivered(self, user: int, k: int, seq: int, at: float, device: int = 0) -> bool:
        """`user` got the entry that is message k. Gives whether it is the peer's, and new."""
        if not 0 <= k < self.n:
            self.stray += 1
            return False
        end = self._sender[k] ^ 1
        is_peers = self._owner[end] == user
        bit = 1 << device
        if not is_peers:
            end, bit = end ^ 1, bit << self.devices
            if self._owner[end] == user and device == self.device_of(k) and k in self._cut:
                self._settled(k, end, seq, at)
                return False
            if self._owner[end] != user or device == self.device_of(k):
                self.stray += 1
                return False
        if self._seen[k] & bit:
            self.duplicated += 1
            return False
        self._seen[k] |= bit
        if self._seen[k] == self._full:  # the last of them has it
            self.deliveries += 1
            self.deliveries_at[k] = at
        in_order = self._in_order(end * self.devices + device, seq)
        if is_peers:
            place = (end * self.devices + device) * self.devices + self.device_of(k)
            if k > self._last_k[place]:
                self._last_k[place] = k
            elif in_order:
                self.reordered += 1
        return is_peers

    def _settled(self, k: int, end: int, seq: int, at: float) -> None:
        """The sender got its own entry of a message that was cut."""
        if not self._came_again(k, Again.ENTRY):
            self.duplicated += 1
            return
        if not self._acked[k]:
            self._ack(k, at)
        self._in_order(end * self.devices + self.device_of(k), seq)

    def _in_order(self, place: int, seq: int) -> bool:
        if seq > self._last_seq[place]:
            self._last_seq[place] = seq
            return True
        self.reordered += 1
        return False

    def account(self, first: int, n: int) -> Account:
        """What became of messages first ... first + n - 1."""
        span = range(first, first + n)
        sent = sum(1 for k in span if not math.isnan(self.sent_at[k]))
        delivered = sum(1 for k in span if self._seen[k] == self._full)
        whole = sum(1 for k in span if self._acked[k] and self._seen[k] == self._full)
        return Account(
            sent,
            sum(self._acked[first : first + n]),
            delivered,
            sent - whole,
            self.duplicated,
            self.reordered,
            self.stray,
        )

    def lags(self, first: int, n: int) -> list[float]:
        """How late each was sent: the generator's own fault.

        What was never sent is infinitely late.
        """
        late = (self.sent_at[k] - self.due_at[k] for k in range(first, first + n))
        return [math.inf if math.isnan(s) else s for s in late]

    def latencies(self, first: int, n: int, times: Sequence[float]) -> list[float]:
        """From due to `times` (`acked_at`, `deliveries_at`); what never came is infinitely late."""
        due = self.due_at
        return [times[k] - due[k] if not math.isnan(times[k]) else math.inf for k in range(first, first + n)]
