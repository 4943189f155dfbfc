"""Decides when output is written: at the end of a loop turn, or later while the node is behind.

Pure; the loop and its clock are passed in.

    Connection.send ──► Flusher.add ──end of turn──┬── turns are short ──► flush
                                                   └── turns are long ──► wait `delay_s` ──► flush

A write is the most expensive step of a message: a system call in which the kernel does all the work
of the network path. With few connections a turn has several frames for each of them; with a
thousand, nearly every frame was a write of its own. The length of turns shows how far behind the
node is: 1 to 5 ms at 16,000 messages a second, 8 to 25 ms when it is overloaded. Only then does a
frame wait for later ones to the same client: the writes saved make all of them faster
(docs/decisions/0018).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

BUSY_TURN_S: Final = 0.008  # if turns are longer than this, the node is behind
DELAY_FACTOR: Final = 5  # a frame waits this many milliseconds per millisecond that turns are longer
DELAY_MAX_S: Final = 0.04
AVERAGE_TURNS: Final = 8  # `average_s` follows about as many turns
# A longer turn counts as this long, so that a single one, whatever its cause, delays no output.
LONGEST_S: Final = BUSY_TURN_S * (AVERAGE_TURNS - 1)
TICK_S: Final = 0.001  # the loop's timers are no finer


class Output(Protocol):
    """A connection with output to write."""

    def flush(self) -> None: ...


class Flusher:
    """Flushes outputs at the end of a turn, or after `delay_s`.

    `clock` gives seconds. `call_soon` runs a function at the end of the loop turn, `call_later`
    after some seconds.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        call_later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float],
    ) -> None:
        self.average_s = 0.0  # recent length of a turn, from its first output to its end
        self._call_soon, self._call_later, self._clock = call_soon, call_later, clock
        self._turn: list[Output] = []
        self._began = self._ended = 0.0
        self._waiting: deque[tuple[float, list[Output]]] = deque()  # (due, outputs of a turn)
        self._ticking = False

    @property
    def turn_s(self) -> float:
        """The recent length of a turn; 0 if the loop is idle."""
        return 0.0 if self._clock() - self._ended > DELAY_MAX_S else self.average_s

    @property
    def delay_s(self) -> float:
        """How long the output of a turn that ends now waits, in seconds."""
        return min(max(self.average_s - BUSY_TURN_S, 0.0) * DELAY_FACTOR, DELAY_MAX_S)

    def add(self, output: Output) -> None:
        """Flush this output soon: it has something to write, the first since its last `flush`."""
        if not self._turn:
            self._began = self._clock()
            if self._began - self._ended > DELAY_MAX_S:
                self.average_s = 0.0  # the loop was idle, so the node is no longer behind
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
        finally:  # a bug in one flush must not hold back the output of other turns
            if waiting and not self._ticking:
                self._ticking = True
                self._call_later(max(waiting[0][0] - now, TICK_S), self._tick)
