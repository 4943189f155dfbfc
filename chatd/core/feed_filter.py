"""Which conversations are held here, as bits by id: what a node asks the change feed for. Pure.

    Registry.hold ──add──► bits ──begin──► feed_since (PostgreSQL leaves out rows without a hit)
                                 ──end───► conversations held since `begin`: to be looked up

A bit that is set too much costs a row that is read and ignored; a bit that lacks would cost an
entry. So a conversation that is dropped keeps its bit until the bits are made again, which happens
when more were added than twice those held. What is held between `begin` and `end` had no bit in the
question, and the answer may lack its rows: the caller looks these conversations up after it.

The bits are sent with each read. By `BITS_EACH` bits a conversation one row in nine passes by
chance.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from chatd.ids import ConvId

BITS_MIN: Final = 1 << 12
BITS_MAX: Final = 1 << 22  # 512 KiB in each read; a node that holds more conversations reads all rows
BITS_EACH: Final = 8
NO_FILTER: Final = b""


class FeedFilter:
    """The bits of the conversations in `held`. Each that is new there is reported by `add`."""

    __slots__ = ("_added", "_bits", "_held", "_late", "_mask")

    def __init__(self, held: Collection[ConvId]) -> None:
        self._held = held
        self._late: list[ConvId] | None = None  # held since `begin`; None: no question is under way
        self._renew(BITS_MIN)

    def _renew(self, size: int) -> None:
        self._bits, self._mask = bytearray(size // 8), size - 1
        self._added = 0  # since the bits were made, those of that time included
        for id in self._held:
            self._set(id)

    def _set(self, id: ConvId) -> None:
        at = id & self._mask
        self._bits[at >> 3] |= 1 << (at & 7)
        self._added += 1

    def add(self, id: ConvId) -> None:
        """A conversation is held from now on."""
        self._set(id)
        if self._late is not None:
            self._late.append(id)

    def begin(self) -> bytes:
        """The bits to ask with, lowest bit first in each byte; `NO_FILTER`: ask for all rows."""
        self._late = []
        size = max(BITS_MIN, 1 << (len(self._held) * BITS_EACH - 1).bit_length()) if self._held else BITS_MIN
        if size > BITS_MAX:
            return NO_FILTER
        if size > self._mask + 1 or self._added > 2 * len(self._held) + BITS_MIN // BITS_EACH:
            self._renew(size)
        return bytes(self._bits)

    def end(self) -> list[ConvId]:
        """The answer is there: conversations that are held since `begin`."""
        late, self._late = self._late or [], None
        return late
