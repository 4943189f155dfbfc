"""Two keys are the same if they check the same signatures, whatever the file calls them."""

from __future__ import annotations

import jwt

from chatd.core.identity import Key


def key(kid: str | None, secret: bytes, algorithm: str = "HS256", made_of: bytes = b"") -> Key:
    members = {"kty": "oct", "k": jwt.utils.base64url_encode(secret).decode(), "alg": algorithm}
    return Key(kid, jwt.PyJWK(members), None, made_of)


def test_name_and_form_of_a_key_do_not_count() -> None:
    one = key("one", b"s" * 64)
    assert one.is_same(one)
    assert one.is_same(key("two", b"s" * 64, made_of=b"other"))
    assert one.is_same(key(None, b"s" * 64))


def test_another_secret_or_algorithm_is_another_key() -> None:
    one = key("one", b"s" * 64)
    assert not one.is_same(key("one", b"t" * 64))
    assert not one.is_same(key("one", b"s" * 64, "HS512"))
