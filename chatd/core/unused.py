"""Finds conversations that nobody has used for a while. Pure.

    held ──a part of them each second──► is_used? ──yes──► cleared, until the next round
                                                 └─no──► unused: let go by the registry

A use is one write of a slot, on the path of each request that names a conversation. A list in the
order of use would cost every message several calls. So all are looked at in rounds of `ROUND_LOOKS`
looks, one a second: a conversation goes when a whole round has found it unused, after one to two
rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from chatd.core.conversation import Conversation
    from chatd.ids import ConvId

ROUND_LOOKS: Final = 60


class Unused:
    """`look` once a second."""

    __slots__ = ("_looks", "_round")

    def __init__(self) -> None:
        self._round: list[Conversation] = []  # what is still to be looked at
        self._looks = 0  # left of this round

    def look(self, held: Mapping[ConvId, Conversation]) -> Iterator[Conversation]:
        """The next part of those held; gives what was not used since its last look."""
        if not self._looks:
            self._round, self._looks = list(held.values()), ROUND_LOOKS
        part = math.ceil(len(self._round) / self._looks)
        self._looks -= 1
        for _ in range(part):
            conv = self._round.pop()
            if held.get(conv.id) is not conv:
                continue
            if conv.is_used:
                conv.is_used = False
            else:
                yield conv
