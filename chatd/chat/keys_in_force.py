"""Holds the keys in force on a node: tokens are checked with them, development tokens signed.

The key file is read at the start and on SIGHUP, so keys are rotated without a restart. A file that
cannot be read, or that is invalid, changes nothing. The checks of a token are in `auth.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from chatd.chat.auth import KeySet, Verifier, issue
from chatd.errors import SettingError

if TYPE_CHECKING:
    from chatd.clock import Clock
    from chatd.config import Settings
    from chatd.core.identity import Identity
    from chatd.ids import UserId
    from chatd.metrics import Metrics

log = structlog.get_logger("server")  # the name that operators know these events by

DEV_TOKEN_TTL_S: Final = 30 * 86_400  # life of a development token, unless `token_ttl_max_s` is shorter


class KeysInForce:
    """The current key set and the verifier made of it; `reload` replaces both."""

    def __init__(self, settings: Settings, clock: Clock, metrics: Metrics) -> None:
        """Raises SettingError if the key file is invalid."""
        self._settings, self._clock, self._metrics = settings, clock, metrics
        self.keys = self._load(None)
        self._verifier = self._verifier_of(self.keys)

    def verify(self, token: str) -> Identity:
        """The user that the token names, and until when. Raises TokenExpired, Unauthorized."""
        return self._verifier.verify(token, self._clock.now_s())

    def issue(self, user: UserId) -> str:
        """A signed token for `user`, for development and tests."""
        s = self._settings
        ttl_s = s.token_ttl_s(DEV_TOKEN_TTL_S)
        return issue(self.keys, user, ttl_s, self._clock.now_s(), s.jwt_audience, s.jwt_issuer)

    def reload(self) -> bool:
        """Read the key file again. False: it is invalid, and the keys stay as they were.

        It awaits nothing. A hello is therefore checked either before it, with the old keys, and
        `net/revocation.py` finds its session afterwards; or after it, with the new keys.
        """
        old = self.keys
        try:
            self.keys = self._load(old)
        except SettingError as e:
            self._metrics.reload_failures += 1
            log.error("keys.kept", reason=str(e))
            return False
        self._verifier = self._verifier_of(self.keys)
        added = [key.kid for key in self.keys.all() if not old.keeps(key)]
        removed = [key.kid for key in old.all() if not self.keys.keeps(key)]
        log.info("keys.reloaded", added=added, removed=removed)
        return True

    def _load(self, known: KeySet | None) -> KeySet:
        s = self._settings
        keys = KeySet.development(s.data_dir, known) if s.keys_file is None else KeySet.load(s.keys_file, known)
        for warning in keys.warnings:
            log.warning("keys.warning", reason=warning)
        return keys

    def _verifier_of(self, keys: KeySet) -> Verifier:
        s = self._settings
        return Verifier(keys, s.jwt_audience, s.jwt_issuer, s.jwt_leeway_s, s.token_ttl_max_s)
