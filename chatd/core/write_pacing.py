"""When output leaves: at the end of the loop turn, or a little later while the node is behind.

Pure; the loop and its clock are handed in.

    Connection.send ──► Flusher.add ──end of turn──┬── turns are short ──► flush
                                                   └── turns are long ──► waits `delay_s`, with what comes meanwhile ──► flush

A write is the dearest step of a message: a system call, with the kernel's whole way to the other
side in it. With few connections a turn has several frames for each of them; with a thousand, nearly
every frame was a write of its own. How long turns take tells how far behind the node is: 1 to 5 ms
at 16,000 messages a second, 8 to 25 ms once it has more to do than it can. There, and only there, a
frame waits for others to its client: the writes saved bring all of them forward
(docs/decisions/0018).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

BUSY_TURN_S: Final = 0.008  # turns longer than this: the node is behind
DELAY_FACTOR: Final = 5  # for each millisecond that turns are longer, a frame waits for so many
DELAY_MAX_S: Final = 0.04
AVERAGE_TURNS: Final = 8  # `average_s` follows about as many
# Longer ones count as so long: a single one, of whatever cause, holds nothing back
LONGEST_S: Final = BUSY_TURN_S * (AVERAGE_TURNS - 1)
TICK_S: Final = 0.001  # the loop's timers are no finer


class Output(Protocol):
    def flush(self) -> None: ...


class Flusher:
    """`clock` in seconds; `call_soon` runs a function at the end of the loop turn, `call_later`
    some seconds later.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        call_later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float],
    ) -> None:
        self.average_s = 0.0  # how long a turn took of late, from its first output to its end
        self._call_soon, self._call_later, self._clock = call_soon, call_later, clock
        self._turn: list[Output] = []
        self._began = self._ended = 0.0
        self._waiting: deque[tuple[float, list[Output]]] = deque()  # (due, outputs of a turn)
        self._ticking = False

    @property
    def turn_s(self) -> float:
        """How long a turn takes; 0 where the loop rests."""
        return 0.0 if self._clock() - self._ended > DELAY_MAX_S else self.average_s

    @property
    def delay_s(self) -> float:
        """How long the output of a turn that ends now waits."""
        return min(max(self.average_s - BUSY_TURN_S, 0.0) * DELAY_FACTOR, DELAY_MAX_S)

    def add(self, output: Output) -> None:
        """It has something to write, for the first time since its last `flush`."""
        if not self._turn:
            self._began = self._clock()
            if self._began - self._ended > DELAY_MAX_S:
                self.average_s = 0.0  # the loop has rested: it is not behind, whatever it was before
            self._call_soon(self._end_turn)
        self._turn.append(output)

    def _end_turn(self) -> None:
        turn, self._turn = self._turn, []
        if self.average_s > BUSY_TURN_S:
            self._waiting.append((self._clock() + self.delay_s, turn))
            self._flush_due()
        else:
            for output in turn:
                output.flush()
        self._ended = self._clock()
        self.average_s += (min(self._ended - self._began, LONGEST_S) - self.average_s) / AVERAGE_TURNS

    def _tick(self) -> None:
        self._ticking = False
        self._flush_due()

    def _flush_due(self) -> None:
        waiting, now = self._waiting, self._clock()
        try:
            while waiting and waiting[0][0] < now + TICK_S / 2:
                for output in waiting.popleft()[1]:
                    output.flush()
        finally:  # a bug in one of them must not keep other turns' back
            if waiting and not self._ticking:
                self._ticking = True
                self._call_later(max(waiting[0][0] - now, TICK_S), self._tick)
