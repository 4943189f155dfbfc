"""Who writes to whom. Pure.

    Pairs       users 2p and 2p + 1 have one conversation with each other
    Contacts    every user has K others, chosen at random, and a conversation with each: as users are

A conversation c has two ends, 2c and 2c + 1 (see `ledger`); `owner[end]` is the user there. The
same numbers give the same contacts in each process, so that the log which is filled for them
(`contact_logs`) and the loads agree without telling each other.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, Protocol


class People(Protocol):
    """Users 0 ... users - 1 and what they have with each other."""

    users: int
    owner: Sequence[int]

    def end(self, user: int, rng: random.Random) -> int:
        """Of a conversation that this user is to write in: each as often."""

    def ends(self, user: int) -> Iterator[int]:
        """Of all conversations of a user who comes."""


class Pairs:
    """The ends are the users."""

    def __init__(self, users: int) -> None:
        assert users % 2 == 0
        self.users = users
        self.owner: Sequence[int] = range(users)

    def end(self, user: int, rng: random.Random) -> int:
        return user

    def ends(self, user: int) -> Iterator[int]:
        yield user


def name(n: int) -> str:
    """Of a user who has contacts: the same in each run, as the log is."""
    return f"h{n:07d}"


class Contacts:
    """`each` contacts a user.

    Users stand in a ring, and everybody knows those at the same distances, which are drawn: so each
    has exactly `each` others, none twice. More contacts than there are other users are strangers,
    users `users` ... `users + each - 1`, who never come; everybody knows all of them.
    """

    def __init__(self, users: int, each: int, seed: int = 1) -> None:
        """Raises ValueError if there are no such contacts."""
        if users < 2 or each < 1:
            raise ValueError("contacts: two users or more, with one contact or more each")
        self.users, self.each = users, each
        self.strangers = each if each >= users else 0
        if not self.strangers and each % 2 and users % 2:
            raise ValueError("contacts: with an odd number of users it is to be even")
        rng = random.Random(f"{seed} {users} {each}")
        near = range(1, (users + 1) // 2)
        self._distances: Final = [] if self.strangers else rng.sample(near, each // 2)
        self._is_opposite_known = not self.strangers and each > 2 * len(self._distances)
        self.owner: Sequence[int] = array("l", (user for pair in self._pairs() for user in pair))

    @property
    def conversations(self) -> int:
        return len(self.owner) // 2

    @property
    def names(self) -> list[str]:
        """Of all, strangers too; those who come are first."""
        return [name(n) for n in range(self.users + self.strangers)]

    def end(self, user: int, rng: random.Random) -> int:
        return self._end(user, rng.randrange(self.each))

    def ends(self, user: int) -> Iterator[int]:
        return (self._end(user, n) for n in range(self.each))

    def _pairs(self) -> Iterator[tuple[int, int]]:
        users = range(self.users)
        if self.strangers:
            yield from ((u, self.users + n) for u in users for n in range(self.strangers))
        for distance in self._distances:
            yield from ((u, (u + distance) % self.users) for u in users)
        if self._is_opposite_known:
            yield from ((u, u + self.users // 2) for u in range(self.users // 2))

    def _end(self, user: int, n: int) -> int:
        """The user's end of the conversation with its n-th contact, from 0."""
        if self.strangers:
            return 2 * (user * self.each + n)
        ring = len(self._distances)
        if n < ring:
            return 2 * (n * self.users + user)
        if n < 2 * ring:
            return 2 * ((n - ring) * self.users + (user - self._distances[n - ring]) % self.users) + 1
        half = self.users // 2
        return 2 * (ring * self.users + user % half) + (user >= half)
