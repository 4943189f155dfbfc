"""The identity that a token proves, and the key that its signature was checked with. Pure.

The checks are in chat/auth.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import jwt

    from chatd.ids import UserId


class Key(NamedTuple):
    """One key of the key file.

    `signs`: None if the file has the public half only. `kid`: None if neither the file nor a token
    names the key. `made_of`: a digest of all its members.
    """

    kid: str | None
    checks: jwt.PyJWK
    signs: jwt.PyJWK | None
    made_of: bytes

    def is_same(self, other: Key) -> bool:
        """True if both check the same signatures, whatever their names and form in the file."""
        mine, others = self.checks, other.checks
        return mine is others or (mine.algorithm_name == others.algorithm_name and bool(mine.key == others.key))


class Identity(NamedTuple):
    """The user that a token names, and how long this server accepts it.

    `exp_ms`: the token's `exp` plus the leeway, ms since 1970. `key`: as the token names it.
    """

    user: UserId
    exp_ms: int
    key: Key
