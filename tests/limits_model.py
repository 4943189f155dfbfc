"""What the script of chatd/cluster/shared_limits.py is to do, said anew: with the whole past, by
counting, and by a clock of the test's.

The unit tests use it in Redis's place; `tests/cluster/test_shared_limits.py` holds Redis to it, call by
call, so that what they show is true.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

US = 1_000_000


@dataclass
class State:
    """All takes that a window ever granted and that were not given back, and the penalty."""

    takes: list[int] = field(default_factory=list)
    until: int = 0
    strikes: int = 0
    last_wait: int = 0


class Model:
    """`answer` is a call of the script at a time. All times in us."""

    def __init__(self) -> None:
        self.states: dict[str, State] = defaultdict(State)
        self.granted: dict[str, list[int]] = defaultdict(list)  # given back or not

    def answer(self, now: int, keys: Sequence[Any], args: Sequence[Any]) -> bytes:
        limits, asks, forget = orjson.loads(args[0]), orjson.loads(args[1]), int(args[2])
        assert len(keys) == len(asks) == len(set(keys))
        words = [now]
        for key, (kind, want, *told) in zip(keys, asks, strict=True):
            returned, struck = told or ([], [])
            most, period = limits[kind - 1]
            words += self.one(now, str(key), most, period, forget, want, returned, struck)
        return b" ".join(b"%d" % word for word in words)

    def one(
        self,
        now: int,
        key: str,
        most: int,
        period: int,
        forget: int,
        want: int,
        returned: Sequence[int],
        struck: Sequence[int],
    ) -> tuple[int, int, int, int, int]:
        state = self.states[key]
        for mark in returned:
            if mark in state.takes:
                state.takes.remove(mark)
        for wait in struck:
            if now >= state.until + forget:
                state.strikes = state.last_wait = 0
            state.strikes += 1
            state.last_wait = max(state.last_wait, wait)
            state.until = max(state.until, now + wait)
        if now >= state.until + forget:
            state.until = state.strikes = state.last_wait = 0

        def room(at: int) -> int:
            return most - sum(at - period < take for take in state.takes)

        granted = 0
        while granted < want and now >= state.until and room(now) > 0:
            state.takes.append(now)
            granted += 1
        self.granted[key] += [now] * granted
        wait = 0
        if granted < want:
            free_at = min(at for at in (now, *(take + period for take in state.takes)) if at >= now and room(at) > 0)
            wait = max(free_at, state.until) - now
        return granted, wait, state.until - now if state.strikes else 0, state.strikes, state.last_wait


def most_in_any(times: Sequence[float], period: float) -> int:
    """The greatest number of times in any half-open stretch of `period`."""
    times = sorted(times)
    return max((sum(start <= at < start + period for at in times[n:]) for n, start in enumerate(times)), default=0)
