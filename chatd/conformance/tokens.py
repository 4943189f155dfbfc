"""Tokens for the users of a run: signed here, or asked of a command.

    by_secret("...")      HS256 by a shared secret
    by_command("CMD")     what the command prints; `{user}` and `{ttl_s}` in it are filled in
    TokenMaker(issue)     by any function: what `chatd` does with its key file

A `TokenMaker` also makes the tokens that a server must refuse: signed by another key, or not at
all.
"""

from __future__ import annotations

import secrets
import shlex
import subprocess
import time
from collections.abc import Callable
from typing import Final, TypeAlias

import jwt

from chatd.conformance.values import TOKEN_TTL_S, Frame, as_int
from chatd.errors import SettingError

Issue: TypeAlias = Callable[[str, int], str]  # of a user, for so many seconds
SECRET_BYTES_MIN: Final = 32  # as long as the hash; RFC 7518 section 3.2
COMMAND_S: Final = 30.0  # for one token


class TokenMaker:
    """Makes what `$token` asks for. `has_lifetimes`: it can make tokens of any lifetime."""

    def __init__(self, issue: Issue, *, has_lifetimes: bool = True) -> None:
        self._issue = issue
        self.has_lifetimes = has_lifetimes

    def __call__(self, user: str, options: Frame) -> str:
        token = self._issue(user, as_int(options.get("ttl_s", TOKEN_TTL_S)))
        if not (options.get("none") or options.get("wrong_key")):
            return token
        header = jwt.get_unverified_header(token)
        claims = jwt.decode(token, options={"verify_signature": False})
        if options.get("none"):
            return jwt.encode(claims, "", "none")
        named = {"kid": str(header["kid"])} if "kid" in header else None
        return jwt.encode(claims, secrets.token_bytes(SECRET_BYTES_MIN), "HS256", headers=named)


def by_secret(secret: str) -> TokenMaker:
    """Raises SettingError for a secret that is too short to sign by."""
    if len(secret.encode()) < SECRET_BYTES_MIN:
        raise SettingError(f"--secret: has fewer than {SECRET_BYTES_MIN} bytes; give the one that the server checks by")

    def issue(user: str, ttl_s: int) -> str:
        now = int(time.time())
        return jwt.encode({"sub": user, "iat": now, "exp": now + ttl_s}, secret, "HS256")

    return TokenMaker(issue)


def by_command(command: str) -> TokenMaker:
    """`command` is split as a shell would, and run without one, once for each token."""
    words = _words("--token-command", command)
    if not any("{user}" in word for word in words):
        raise SettingError("--token-command: has no {user}; give a command such as 'mint-token --sub {user}'")

    def issue(user: str, ttl_s: int) -> str:
        filled = [word.replace("{user}", user).replace("{ttl_s}", str(ttl_s)) for word in words]
        try:
            done = subprocess.run(filled, capture_output=True, text=True, timeout=COMMAND_S, check=True)  # noqa: S603
        except OSError as e:
            raise SettingError(f"--token-command: {words[0]} cannot be run: {e.strerror}") from None
        except subprocess.TimeoutExpired:
            raise SettingError(f"--token-command: printed nothing within {COMMAND_S:.0f} s") from None
        except subprocess.CalledProcessError as e:
            last = (str(e.stderr).strip().splitlines() or ["it printed no reason"])[-1]
            raise SettingError(f"--token-command: ended with status {e.returncode}: {last}") from None
        return done.stdout.strip()

    return TokenMaker(issue, has_lifetimes=any("{ttl_s}" in word for word in words))


def _words(flag: str, command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as e:
        raise SettingError(f"{flag}: {command!r} is no command line: {e}") from None
    if not words:
        raise SettingError(f"{flag}: is empty; give a command")
    return words
