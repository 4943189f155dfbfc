"""How often somebody may say hello: a user, and an address. Pure.

A hello is the dearest request that there is (a signature, a listing, a welcome), and the one that a
stranger sends first. By address it is counted before its token is looked at, by user after that.
Whoever is over waits as long as `retry_ms` says and comes again. A new token on a live connection
(`refresh`) counts as a hello of its user: a signature is looked at for it, too. At the rate of
frames, 100 connections took 0.7 of a core with them, and pings of others 170 ms.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from chatd.core.session import User

# Ten devices that all connect anew four times, and then a device every half second: no network is
# that bad for longer.
USER_HELLOS_PER_S: Final = 2.0
USER_HELLOS_BURST: Final = 40
# Everybody behind one address may come back at the same time (the burst is
# `connections_per_address_max`); after that a hello's 1 ms of the node leaves four fifths of it to
# others.
ADDRESS_HELLOS_PER_S: Final = 200.0
ADDRESSES_MAX: Final = 50_000  # that are counted; past it the one is forgotten that was counted longest ago, 8 MB


class Taken(NamedTuple):
    """`wait_s` 0.0: taken.

    Else nothing was, and there is one after that. `full_at`: when the bucket is full again.
    """

    wait_s: float
    full_at: float


def take(full_at: float, now: float, per_s: float, burst: int) -> Taken:
    """From a token bucket whose whole state is when it will be full again."""
    full_at = max(full_at, now)
    wait_s = full_at - now - (burst - 0.5) / per_s  # half a token of slack, against rounding
    return Taken(wait_s, full_at) if wait_s > 0 else Taken(0.0, full_at + 1 / per_s)


class Addresses:
    """A token bucket for each address, kept only until it is full again."""

    def __init__(self, burst: int) -> None:
        self._burst = burst
        self._full_at: dict[str, float] = {}  # the one taken from longest ago first

    def take(self, name: str, now: float) -> float:
        """0.0: taken. Else the seconds after which there is one."""
        taken = take(self._full_at.pop(name, now), now, ADDRESS_HELLOS_PER_S, self._burst)
        self._full_at[name] = taken.full_at
        self._forget(now)
        return taken.wait_s

    def _forget(self, now: float) -> None:
        while self._full_at:
            name = next(iter(self._full_at))
            if self._full_at[name] > now and len(self._full_at) <= ADDRESSES_MAX:
                return
            del self._full_at[name]

    def __len__(self) -> int:
        return len(self._full_at)


def of_user(user: User, now: float) -> float:
    """Likewise for a user; who is let go has been quiet for long enough to be as good as new
    (registry.LINGER_S).
    """
    taken = take(user.hellos_full_at, now, USER_HELLOS_PER_S, USER_HELLOS_BURST)
    user.hellos_full_at = taken.full_at
    return taken.wait_s


def retry_ms(wait_s: float) -> int:
    """As the wire has it."""
    return max(1, math.ceil(wait_s * 1000))
