"""What became of each message. Pure.

Messages are numbered in the order they are due: `k`. A sender's numbers rise, and so do those that its one peer must see. The rules:

    lost         not acked, or not delivered to its peer, when the run is over
    duplicated   acked or delivered once more, or acked as a `dup` though nothing was sent twice
    reordered    came after a later one: on a connection the seqs (of entries and of `ok`s, which take an entry's place) rise,
                 and so do the numbers of what the peer sent
    stray        an ack or entry of a message that this user did not send, or was not to get

`bench send` and its tests share this one judge; the tests hand it seeded losses, duplicates and swaps.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass


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
    """`sender[k]` is the user who sends message k, `peer_of[user]` who gets it. Times are seconds of one clock; NaN: it did not happen."""

    __slots__ = (
        "_ack_n", "_delivery_n", "_last_k", "_last_seq", "_peer_of", "_sender", "acked_at", "acks", "deliveries", "deliveries_at", "due_at",
        "duplicated", "n", "reordered", "sent_at", "stray",
    )  # fmt: skip

    def __init__(self, sender: Sequence[int], peer_of: Sequence[int]) -> None:
        n = self.n = len(sender)
        self._sender, self._peer_of = sender, peer_of
        self._ack_n, self._delivery_n = bytearray(n), bytearray(n)
        self.due_at, self.sent_at = array("d", [math.nan]) * n, array("d", [math.nan]) * n
        self.acked_at, self.deliveries_at = array("d", [math.nan]) * n, array("d", [math.nan]) * n
        self._last_seq = [0] * len(peer_of)
        self._last_k = [-1] * len(peer_of)
        self.acks = self.deliveries = 0  # messages, not frames
        self.duplicated = self.reordered = self.stray = 0

    def acked(self, user: int, k: int, seq: int, at: float, dup: bool = False) -> None:
        """`user` got an `ok` to message k."""
        if not 0 <= k < self.n or self._sender[k] != user:
            self.stray += 1
            return
        if self._ack_n[k] or dup:
            self.duplicated += 1
            if self._ack_n[k]:
                return
        self._ack_n[k] = 1
        self.acks += 1
        self.acked_at[k] = at
        if not dup:  # a dup stands outside the order
            self._in_order(user, seq)

    def delivered(self, user: int, k: int, seq: int, at: float) -> None:
        """`user` got the entry that is message k."""
        if not 0 <= k < self.n or self._peer_of[self._sender[k]] != user:
            self.stray += 1
            return
        if self._delivery_n[k]:
            self.duplicated += 1
            return
        self._delivery_n[k] = 1
        self.deliveries += 1
        self.deliveries_at[k] = at
        in_order = self._in_order(user, seq)
        if k > self._last_k[user]:
            self._last_k[user] = k
        elif in_order:
            self.reordered += 1

    def _in_order(self, user: int, seq: int) -> bool:
        if seq > self._last_seq[user]:
            self._last_seq[user] = seq
            return True
        self.reordered += 1
        return False

    def account(self, first: int, n: int) -> Account:
        """What became of messages first ... first + n - 1."""
        span = range(first, first + n)
        sent = sum(1 for k in span if not math.isnan(self.sent_at[k]))
        whole = sum(1 for k in span if self._ack_n[k] and self._delivery_n[k])
        acked, delivered = sum(self._ack_n[first : first + n]), sum(self._delivery_n[first : first + n])
        return Account(sent, acked, delivered, sent - whole, self.duplicated, self.reordered, self.stray)

    def lags(self, first: int, n: int) -> list[float]:
        """How late each was sent: the generator's own fault."""
        return [self.sent_at[k] - self.due_at[k] for k in range(first, first + n)]

    def latencies(self, first: int, n: int, times: Sequence[float]) -> list[float]:
        """From due to `times` (`acked_at`, `deliveries_at`); what never came is infinitely late."""
        due = self.due_at
        return [times[k] - due[k] if not math.isnan(times[k]) else math.inf for k in range(first, first + n)]
