"""Who a token is for, and the key that it was checked with. Pure: the checks are chat/auth.py's."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import jwt

    from chatd.ids import UserId


class Key(NamedTuple):
    """One key.

    `signs` is None where the file has the public half only. `kid` None: neither the file nor a
    token names it.

    `made_of`: a digest of all its members.
    """

    kid: str | None
    checks: jwt.PyJWK
    signs: jwt.PyJWK | None
    made_of: bytes

    def is_same(self, other: Key) -> bool:
        """Do both check the same signatures?

        Their names, and how the file writes them, do not matter.
        """
        mine, others = self.checks, other.checks
        return mine is others or (mine.algorithm_name == others.algorithm_name and bool(mine.key == others.key))


class Identity(NamedTuple):
    """Who a token is for, until when this server takes it (its `exp` plus the leeway), and the key
    by the name that the token gives it.
    """

    user: UserId
    exp_ms: int
    key: Key
