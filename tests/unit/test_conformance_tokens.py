"""Tokens of the conformance kit, and the flags that say how they are made."""

from __future__ import annotations

import sys

import jwt
import pytest

from chatd.conformance import tokens
from chatd.errors import SettingError

SECRET = "s" * 32
PRINT = f"{sys.executable} -c 'import sys; print(*sys.argv[1:])'"


def test_a_secret_signs_for_the_lifetime_that_is_asked_for() -> None:
    claims = jwt.decode(tokens.by_secret(SECRET)("alice", {"ttl_s": 60}), SECRET, ["HS256"])
    assert claims["sub"] == "alice"
    assert claims["exp"] - claims["iat"] == 60


def test_tokens_that_must_be_refused_have_the_claims_and_the_kid_of_good_ones() -> None:
    def issue(user: str, ttl_s: int) -> str:
        return jwt.encode({"sub": user, "exp": 4_000_000_000}, SECRET, "HS256", headers={"kid": "k1"})

    made = tokens.TokenMaker(issue)
    wrong, unsigned = made("alice", {"wrong_key": True}), made("alice", {"none": True})
    assert jwt.get_unverified_header(wrong)["kid"] == "k1"
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(wrong, SECRET, ["HS256"])
    assert jwt.get_unverified_header(unsigned)["alg"] == "none"
    assert jwt.decode(unsigned, options={"verify_signature": False})["sub"] == "alice"


def test_a_command_gets_the_user_and_the_lifetime_as_words() -> None:
    maker = tokens.by_command(f"{PRINT} --sub={{user}} {{ttl_s}}")
    assert maker("a b;$(x)", {}) == "--sub=a b;$(x) 3600"
    assert maker.has_lifetimes
    assert not tokens.by_command(f"{PRINT} {{user}}").has_lifetimes


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("mint", "has no {user}"),
        ("mint '{user}", "no command line"),
        ("", "is empty"),
    ],
)
def test_a_wrong_command_is_named_with_its_remedy(command: str, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        tokens.by_command(command)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("/nonexistent/mint {user}", "cannot be run"),
        (f"{sys.executable} -c 'raise SystemExit(\"no such {{user}}\")'", "status 1: no such alice"),
    ],
)
def test_a_command_that_fails_says_why(command: str, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        tokens.by_command(command)("alice", {})


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(SettingError, match="32 bytes"):
        tokens.by_secret("short")
