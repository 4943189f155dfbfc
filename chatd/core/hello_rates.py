"""Limits the rate of hellos, by user and by address. Pure.

A hello is the most expensive request (a signature, a listing, a welcome), and the first one that a
stranger sends. It is counted by address before its token is checked, and by user after that. A
client over the limit is refused with a `retry_ms`. A new token on a live connection (`refresh`)
counts as a hello of its user, because its signature is checked as well: when only the frame rate
limited it, 100 connections took 0.7 of a core, and pings of other clients took 170 ms.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from chatd.core.session import User

# Ten devices that each reconnect four times, and then one device every half second: no network is
# that bad for longer.
USER_HELLOS_PER_S: Final = 2.0
USER_HELLOS_BURST: Final = 40
# All clients behind one address may reconnect at the same time (the burst is
# `connections_per_address_max`). A hello takes 1 ms of the node, so this rate leaves four fifths of
# it to others.
ADDRESS_HELLOS_PER_S: Final = 200.0
ADDRESSES_MAX: Final = 50_000  # counted at once, 8 MB; past it the one counted longest ago is forgotten


class Taken(NamedTuple):
    """`wait_s` 0.0: a token was taken; else none was, and there is one after `wait_s` seconds.

    `full_at`: when the bucket is full again, in seconds.
    """

    wait_s: float
    full_at: float


def take(full_at: float, now: float, per_s: float, burst: int) -> Taken:
    """Take a token from a bucket whose only state is `full_at`, the time when it is full again."""
    full_at = max(full_at, now)
    wait_s = full_at - now - (burst - 0.5) / per_s  # half a token of slack, against rounding
    return Taken(wait_s, full_at) if wait_s > 0 else Taken(0.0, full_at + 1 / per_s)


class Addresses:
    """A token bucket for each address, kept only until it is full again."""

    def __init__(self, burst: int) -> None:
        self._burst = burst
        self._full_at: dict[str, float] = {}  # the bucket used longest ago first

    def take(self, name: str, now: float) -> float:
        """0.0: a hello of this address was counted. Else the seconds until one is allowed."""
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
    """0.0: a hello of this user was counted. Else the seconds until one is allowed.

    A user who is released had no session for `conversations.LINGER_S`, so the bucket is full again.
    """
    taken = take(user.hellos_full_at, now, USER_HELLOS_PER_S, USER_HELLOS_BURST)
    user.hellos_full_at = taken.full_at
    return taken.wait_s


def retry_ms(wait_s: float) -> int:
    """A wait in seconds as the `retry_ms` of the wire: whole milliseconds, at least 1."""
    return max(1, math.ceil(wait_s * 1000))
