"""Tokens for a real chatd: a JWT signed with a secret (HS256), as an app's own service issues them.

The fake server takes `FakeChatd.token` instead: there a token is a name.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

import orjson


def make_token(
    user: str, secret: str | bytes, *, kid: str | None = None, ttl_s: float = 3_600.0, **claims: str | float
) -> str:
    """A token of `user` for `ttl_s` seconds.

    `kid`: the name of the key, where the server has several. Further `claims`: `aud`, `iss`, ...
    """
    now_s = time.time()
    header = {"alg": "HS256", "typ": "JWT"} | ({} if kid is None else {"kid": kid})
    payload = {"sub": user, "iat": int(now_s), "exp": int(now_s + ttl_s)} | claims
    signed = b".".join(_base64(orjson.dumps(part)) for part in (header, payload))
    key = secret.encode() if isinstance(secret, str) else secret
    return (signed + b"." + _base64(hmac.digest(key, signed, hashlib.sha256))).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
