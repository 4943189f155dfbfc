"""How much of what has come in one turn of the event loop reads. Pure; the loop is handed in.

    data_received ──┬── a slice at most, and budget left ──► read at once
                    └── else ──put_off──► ring ──next turn, a slice of each──► Source.take_slice

A turn that reads all there is lets one connection stop the node: 8 MB of six-byte frames can be
readable at once, and take a second. So there are two bounds. A connection has one slice a turn
(`SLICE_BYTES`, `framing.FEED_FRAMES_MAX`). All connections together have a budget; a frame costs
its bytes and `FRAME_COST` besides. What is left waits in a ring and is read in the next turns, a
slice of each connection in turn; its owner reads nothing more from its socket meanwhile, so that
memory is bounded.

Half of the budget is for the ring, half at least for what comes fresh: neither can starve the
other. There is one intake for sessions and a smaller one for connections that have not said hello:
strangers slow down strangers.

The budget is renewed at the end of a turn that took it below a half, and not after every turn: at a
usual load that costs one callback for some 500 frames. So a turn has between a half and the whole
of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

# Of a connection in a turn; a message has 2 KB, and an outbox of 500 of them is read in 64 turns
SLICE_BYTES: Final = 16_384

FRAME_COST: Final = 1_024  # a frame of 30 bytes costs 5 to 40 us, as much as reading and checking several KB
HANDSHAKE_COST: Final = 32 * FRAME_COST  # the library takes some 0.3 ms for one

# Of a turn: 1,024 frames or 1 MB. At 16,000 messages a second a turn has 16 to 400 frames
SESSIONS_BUDGET: Final = 1_024 * FRAME_COST
STRANGERS_BUDGET: Final = 256 * FRAME_COST  # 8 handshakes: 3 ms

assert SLICE_BYTES <= STRANGERS_BUDGET // 2


class Source(Protocol):
    def take_slice(self) -> bool:
        """Read a slice of what waits; is there more to be read in the next turn?

        It takes the cost from its intake's `left`.
        """


class Intake:
    """`left` may be taken from by whoever reads, who calls `renew` once it is below `low`.

    `call_soon` runs a function in the next turn.
    """

    __slots__ = ("_budget", "_call_soon", "_is_due", "_ring", "left", "low", "put_off_n")

    def __init__(self, budget: int, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self.left = self._budget = budget
        self.low = budget // 2
        self._call_soon = call_soon
        self._is_due = False
        self._ring: deque[Source] = deque()

    def __len__(self) -> int:
        """Connections that wait."""
        return len(self._ring)

    def put_off(self, source: Source) -> None:
        """It has more than it may read in this turn. Not while it is in the ring."""
        self._ring.append(source)
        self.renew()

    def renew(self) -> None:
        """From the next turn on the budget is whole."""
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
            source = ring.popleft()
            if source.take_slice():
                ring.append(source)
        if ring:
            self.renew()
