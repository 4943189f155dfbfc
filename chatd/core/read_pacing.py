"""Bounds how much input one turn of the event loop reads. Pure; the loop is passed in.

    data_received ──┬── a slice at most, and budget left ──► read at once
                    └── else ──put_off──► ring ──next turn, a slice of each──► Paced.take_slice

If a turn read all there is, one connection could stop the node: 8 MB of six-byte frames can be
readable at once and take a second. So there are two bounds. A connection has one slice a turn
(`SLICE_BYTES`, `framing.FEED_FRAMES_MAX`). All connections together have a budget, from which a
frame takes its bytes and `FRAME_COST`. The rest waits in a ring and is read in the next turns, a
slice of each connection in turn. A connection in the ring reads nothing more from its socket, so
memory is bounded.

Half of the budget is for the ring and at least half for fresh input, so neither can starve the
other. There is one intake for sessions and a smaller one for connections without a hello, so these
can only slow down each other.

The budget is renewed at the end of a turn that took it below a half, and not after every turn: at
usual load that is one callback for some 500 frames. So a turn has between half and all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

# Read from one connection in one turn. A message has 2 KB: an outbox of 500 is read in 64 turns.
SLICE_BYTES: Final = 16_384

FRAME_COST: Final = 1_024  # a frame of 30 bytes costs 5 to 40 us, as much as reading and checking several KB
HANDSHAKE_COST: Final = 32 * FRAME_COST  # the library takes some 0.3 ms for one

# Of one turn: 1,024 frames or 1 MB. At 16,000 messages a second a turn has 16 to 400 frames.
SESSIONS_BUDGET: Final = 1_024 * FRAME_COST
UNAUTHENTICATED_BUDGET: Final = 256 * FRAME_COST  # 8 handshakes: 3 ms

assert SLICE_BYTES <= UNAUTHENTICATED_BUDGET // 2


class Paced(Protocol):
    """A connection whose input is read in slices."""

    def take_slice(self) -> bool:
        """Read a slice of the input that waits; True if more is left for the next turn.

        It takes the cost from its intake's `left`.
        """


class Intake:
    """The budget of a turn, and the ring of connections that wait for the next one.

    A connection that reads takes its cost from `left`, and calls `renew` once that is below `low`.
    `call_soon` runs a function in the next turn.
    """

    __slots__ = ("_budget", "_call_soon", "_is_due", "_ring", "left", "low", "put_off_n")

    def __init__(self, budget: int, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self.left = self._budget = budget
        self.low = budget // 2
        self._call_soon = call_soon
        self._is_due = False
        self._ring: deque[Paced] = deque()

    def __len__(self) -> int:
        """How many connections wait."""
        return len(self._ring)

    def put_off(self, paced: Paced) -> None:
        """Let a connection with more input than this turn may read wait in the ring.

        Not to be called while it is in the ring.
        """
        self._ring.append(paced)
        self.renew()

    def renew(self) -> None:
        """Make the budget whole from the next turn on."""
        if not self._is_due:
            self._is_due = True
            self._call_soon(self._turn)

    def _turn(self) -> None:
        self._is_due = False
        self.left = self._budget
        ring = self._ring
        for _ in range(len(ring)):
            if self.left < self.low:
                break
            paced = ring.popleft()
            if paced.take_slice():
                ring.append(paced)
        if ring:
            self.renew()
