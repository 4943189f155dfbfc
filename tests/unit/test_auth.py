"""Tokens and keys: what is taken, and each attack that must not be."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import threading
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatd.chat.auth import DEVELOPMENT_FILE, TOKEN_CHARS_MAX, KeySet, Verifier, issue
from chatd.core.identity import Key
from chatd.errors import SettingError, TokenExpired, Unauthorized
from chatd.ids import UserId

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_790_000_000
ALICE = UserId("alice")


def b64(data: bytes | str | dict[str, Any]) -> str:
    if isinstance(data, dict):
        data = json.dumps(data)
    return base64.urlsafe_b64encode(data.encode() if isinstance(data, str) else data).rstrip(b"=").decode()


RSA_KEY = rsa.generate_private_key(65537, 2048)
ED_KEY = ed25519.Ed25519PrivateKey.generate()
SECRET = os.urandom(32)
OCT: dict[str, Any] = {"kty": "oct", "kid": "hs", "alg": "HS256", "k": b64(SECRET)}
ED: dict[str, Any] = {**jwt.algorithms.OKPAlgorithm.to_jwk(ED_KEY, as_dict=True), "kid": "ed", "alg": "EdDSA"}
RSA: dict[str, Any] = {**jwt.algorithms.RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True), "kid": "rs", "alg": "RS256"}
RSA_PUBLIC = {name: RSA[name] for name in ("kty", "kid", "alg", "n", "e")}
ED_PUBLIC = {name: ED[name] for name in ("kty", "kid", "alg", "crv", "x")}


def write(path: Path, *keys: object, mode: int = 0o600) -> Path:
    path.write_text(json.dumps({"keys": keys}))
    path.chmod(mode)
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeySet:
    return KeySet.load(write(tmp_path_factory.mktemp("keys") / "keys.json", OCT, ED, RSA))


def verifier(keys: KeySet, audience: str | None = None, issuer: str | None = None, leeway_s: int = 5) -> Verifier:
    return Verifier(keys, audience, issuer, leeway_s)


def token(claims: object, header: dict[str, Any] | None = None, secret: bytes = SECRET) -> str:
    """A token by hand, signed with HMAC whatever its header says."""
    head = b64({"alg": "HS256", "kid": "hs", "typ": "JWT"} if header is None else header)
    signed = f"{head}.{b64(claims if isinstance(claims, str) else json.dumps(claims))}"
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


GOOD = {"sub": "alice", "exp": NOW + 60}


# ---- what is taken -------------------------------------------------------------------------------


@pytest.mark.parametrize("jwk", [OCT, ED, RSA], ids=["HS256", "EdDSA", "RS256"])
def test_an_issued_token_is_taken(tmp_path: Path, jwk: dict[str, Any]) -> None:
    keys = KeySet.load(write(tmp_path / "k.json", jwk))
    made = issue(keys, ALICE, 60, NOW, "chat", "login")
    assert verifier(keys, "chat", "login").verify(made, NOW)[:2] == (ALICE, (NOW + 65) * 1000)


def test_a_public_key_checks_what_its_private_half_signed(tmp_path: Path) -> None:
    private = KeySet.load(write(tmp_path / "private.json", ED, RSA))
    public = KeySet.load(write(tmp_path / "public.json", RSA_PUBLIC, ED_PUBLIC))
    assert verifier(public).verify(issue(private, ALICE, 60, NOW, None, None), NOW).user == ALICE
    with pytest.raises(SettingError, match="public keys only"):
        issue(public, ALICE, 60, NOW, None, None)


def test_the_hand_made_token_of_these_tests_is_taken(keys: KeySet) -> None:
    assert verifier(keys).verify(token(GOOD), NOW)[:2] == (ALICE, (NOW + 65) * 1000)


def test_rotation_takes_old_and_new_keys_and_signs_with_the_first(tmp_path: Path) -> None:
    old, new = {**OCT, "kid": "2026-01"}, {**OCT, "kid": "2026-02", "k": b64(os.urandom(32))}
    before = KeySet.load(write(tmp_path / "k.json", old))
    during = KeySet.load(write(tmp_path / "k.json", new, old))
    after = KeySet.load(write(tmp_path / "k.json", new))
    first = issue(before, ALICE, 60, NOW, None, None)
    second = issue(during, ALICE, 60, NOW, None, None)
    assert jwt.get_unverified_header(second)["kid"] == "2026-02"
    for made in (first, second):
        assert verifier(during).verify(made, NOW).user == ALICE
    assert verifier(after).verify(second, NOW).user == ALICE
    with pytest.raises(Unauthorized, match="kid"):
        verifier(after).verify(first, NOW)


def test_without_kid_the_only_key_is_meant_and_with_several_none(tmp_path: Path, keys: KeySet) -> None:
    nameless = {name: value for name, value in OCT.items() if name != "kid"}
    one = KeySet.load(write(tmp_path / "k.json", nameless))
    bare = token(GOOD, {"alg": "HS256"})
    assert verifier(one).verify(bare, NOW).user == ALICE
    assert verifier(one).verify(issue(one, ALICE, 9, NOW, None, None), NOW).user == ALICE
    with pytest.raises(Unauthorized, match="kid"):
        verifier(keys).verify(bare, NOW)


@pytest.mark.parametrize("aud", ["chat", ["other", "chat"]])
def test_audience_may_be_one_or_a_list(keys: KeySet, aud: object) -> None:
    assert verifier(keys, "chat").verify(token({**GOOD, "aud": aud}), NOW).user == ALICE


def test_unknown_claims_and_unset_issuer_do_not_matter(keys: KeySet) -> None:
    assert (
        verifier(keys).verify(token({**GOOD, "iss": "anybody", "roles": [1, {"a": None}], "jti": 7}), NOW).user == ALICE
    )


# ---- time ----------------------------------------------------------------------------------------


def test_the_token_ends_at_exp_plus_leeway_to_the_instant(keys: KeySet) -> None:
    made = token({"sub": "alice", "exp": NOW})
    check = verifier(keys, leeway_s=5)
    assert check.verify(made, NOW + 4.999).exp_ms == (NOW + 5) * 1000
    for late in (NOW + 5, NOW + 5.001, NOW + 10**9):
        with pytest.raises(TokenExpired):
            check.verify(made, late)


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_a_token_from_the_future_waits_for_its_time(keys: KeySet, name: str) -> None:
    made = token({**GOOD, name: NOW + 30})
    with pytest.raises(Unauthorized, match=name):
        verifier(keys, leeway_s=5).verify(made, NOW + 24.9)
    assert verifier(keys, leeway_s=5).verify(made, NOW + 25).user == ALICE


def test_fractions_of_a_second_count(keys: KeySet) -> None:
    made = token({"sub": "alice", "exp": NOW + 0.5})
    assert verifier(keys, leeway_s=0).verify(made, NOW + 0.4).exp_ms == NOW * 1000 + 500
    with pytest.raises(TokenExpired):
        verifier(keys, leeway_s=0).verify(made, NOW + 0.5)


def test_an_expired_token_with_a_wrong_signature_is_not_called_expired(keys: KeySet) -> None:
    with pytest.raises(Unauthorized):
        verifier(keys).verify(token({"sub": "alice", "exp": 1}, secret=b"x" * 32), NOW)


@pytest.mark.parametrize(
    ("claims", "is_taken"),
    [
        ({"iat": NOW - 100, "exp": NOW + 500}, True),
        ({"iat": NOW - 101, "exp": NOW + 500}, False),  # most of it is over, and it was too long all the same
        ({"iat": NOW - 100, "exp": NOW + 500.5}, False),
        ({"iat": 0, "exp": NOW + 60}, False),
        ({"iat": NOW + 5, "exp": NOW + 605}, True),  # an issuer whose clock is ahead by the leeway
        ({"iat": NOW + 60, "exp": NOW + 61}, False),  # a late `iat` makes no token short: it is not valid yet
        ({"iat": NOW + 3, "exp": NOW + 1}, True),
        ({"exp": NOW + 605}, True),  # likewise ahead by the leeway
        ({"exp": NOW + 606}, False),
        ({"iat": None, "exp": NOW + 606}, False),
        ({"nbf": NOW, "exp": NOW + 606}, False),
        ({"exp": 253_402_300_799}, False),  # the last second of the year 9999
    ],
)
def test_a_token_is_valid_for_no_longer_than_the_setting_says(
    keys: KeySet, claims: dict[str, object], is_taken: bool
) -> None:
    made, check = token({"sub": "alice", **claims}), Verifier(keys, None, None, 5, 600)
    if is_taken:
        assert check.verify(made, NOW).user == ALICE
    else:
        with pytest.raises(Unauthorized, match=r"token_ttl_max_s|ahead"):
            check.verify(made, NOW)


def test_without_the_setting_any_time_is_taken(keys: KeySet) -> None:
    assert (
        verifier(keys).verify(token({"sub": "alice", "iat": 0, "exp": 253_402_300_799}), NOW).exp_ms
        == 253_402_300_804_000
    )


def test_what_the_setting_refuses_says_which_setting_and_how_long(keys: KeySet) -> None:
    for claims, says in (
        ({"iat": NOW}, "`exp` minus `iat` may be 600 s at most"),
        ({}, "what is left until `exp` may be 600 s at most"),
    ):
        with pytest.raises(Unauthorized, match=says):
            Verifier(keys, None, None, 5, 600).verify(token({"sub": "alice", "exp": NOW + 10**6, **claims}), NOW)


@pytest.mark.parametrize("value", ["1", True, [], {}, -1, NOW * 1000, 2**53, 2**64, -(2**64), 1e300, -1e300])
@pytest.mark.parametrize("name", ["exp", "iat"])
def test_a_time_that_is_none_is_not_reckoned_with(keys: KeySet, name: str, value: object) -> None:
    with pytest.raises(Unauthorized, match=f"`{name}` is no time"):
        Verifier(keys, None, None, 5, 600).verify(token({**GOOD, name: value}), NOW)


# ---- the key of a token --------------------------------------------------------------------------


def key_of(keys: KeySet, header: dict[str, Any]) -> Key:
    return verifier(keys).verify(token(GOOD, {"alg": "HS256", **header}), NOW).key


NAMELESS = {name: value for name, value in OCT.items() if name != "kid"}
OTHER = {**OCT, "k": b64(os.urandom(32))}


def test_all_tokens_of_a_key_share_one_object(tmp_path: Path) -> None:
    keys = KeySet.load(write(tmp_path / "k.json", OCT))
    assert key_of(keys, {"kid": "hs"}) is key_of(keys, {"kid": "hs"})
    assert key_of(keys, {}) is key_of(keys, {})


@pytest.mark.parametrize(
    ("before", "header", "after", "is_kept"),
    [
        ([OCT], {"kid": "hs"}, [OCT], True),
        ([OCT], {"kid": "hs"}, [ED, OCT], True),
        ([OCT, ED], {"kid": "hs"}, [ED], False),
        ([OCT], {"kid": "hs"}, [OTHER], False),
        ([OCT], {"kid": "hs"}, [{**OCT, "kid": "renamed"}], False),  # a token that says "hs" names no key any more
        ([OCT], {"kid": "hs"}, [NAMELESS], False),
        ([OCT], {"kid": "hs"}, [{**ED, "kid": "hs"}], False),
        ([OCT], {"kid": "hs"}, [{name: OCT[name] for name in ("k", "kid", "kty")}], True),  # written otherwise
        ([NAMELESS], {}, [NAMELESS], True),
        ([NAMELESS], {}, [{**NAMELESS, "k": OTHER["k"]}], False),
        ([NAMELESS], {}, [OCT], True),  # it got a name
        ([NAMELESS], {}, [{**OCT, "kid": "old"}, ED], True),  # and company
        ([OCT], {}, [OCT, ED], True),  # a second key is the beginning of a rotation
        ([OCT], {}, [{**OCT, "kid": "renamed"}], True),  # its tokens, which name none, are taken as before
        ([OCT], {}, [ED], False),
        ([OCT], {}, [OTHER], False),
    ],
)
def test_a_key_is_kept_under_the_name_that_its_tokens_give_it(
    tmp_path: Path, before: list[object], header: dict[str, Any], after: list[object], is_kept: bool
) -> None:
    key = key_of(KeySet.load(write(tmp_path / "k.json", *before)), header)
    assert KeySet.load(write(tmp_path / "k.json", *after)).keeps(key) is is_kept


def test_what_has_stayed_in_the_file_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An RSA key with its private half takes 200 ms, all of them the loop's at a reload."""
    file = write(tmp_path / "k.json", RSA, ED)
    first = KeySet.load(file)
    made: list[str] = []

    class Counted(jwt.PyJWK):
        def __init__(self, jwk_data: dict[str, Any], algorithm: str | None = None) -> None:
            made.append(jwk_data["kid"])
            super().__init__(jwk_data, algorithm)

    monkeypatch.setattr(jwt, "PyJWK", Counted)
    write(file, OCT, {name: RSA[name] for name in reversed(RSA)}, ED)
    second = KeySet.load(file, first)
    assert set(made) == {OCT["kid"]}
    assert second.find("rs") is first.find("rs")
    assert second.find("none of them") is None
    made.clear()
    write(file, {**RSA, "kid": "another"}, RSA_PUBLIC)  # what has changed in anything is another
    third = KeySet.load(file, second)
    assert set(made) == {"another", "rs"}
    assert [(key.kid, key.signs is not None) for key in third.all()] == [("another", True), ("rs", False)]
    with pytest.raises(SettingError, match="has members that make no key"):
        KeySet.load(write(file, {**RSA, "d": "AAAA"}), third)


def test_public_and_private_halves_are_the_same_key(tmp_path: Path) -> None:
    private = KeySet.load(write(tmp_path / "private.json", ED, RSA))
    public = KeySet.load(write(tmp_path / "public.json", RSA_PUBLIC, ED_PUBLIC))
    assert [public.keeps(key) for key in private.all()] == [True, True]
    other = ed25519.Ed25519PrivateKey.generate()
    changed = {**jwt.algorithms.OKPAlgorithm.to_jwk(other, as_dict=True), "kid": "ed"}
    assert [KeySet.load(write(tmp_path / "k.json", changed, RSA_PUBLIC)).keeps(key) for key in private.all()] == [
        False,
        True,
    ]


# ---- claims that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize("exp", ["9999999999", None, True, [], {}, -1, NOW * 1000, 2**53, 2**64, 1e300])
def test_exp_must_be_a_time_in_seconds(keys: KeySet, exp: object) -> None:
    with pytest.raises(Unauthorized, match="exp"):
        verifier(keys).verify(token({"sub": "alice", "exp": exp}), NOW)


@pytest.mark.parametrize(
    "payload",
    [
        '{"sub":"alice","exp":NaN}',
        '{"sub":"alice","exp":Infinity}',
        '{"sub":"alice","exp":1e999}',
        "[]",
        "null",
        '"alice"',
        "",
        "{",
        '{"sub":"\\ud800","exp":9999999999}',
        "[" * 3000,
    ],
)
def test_a_payload_that_is_no_json_object_is_refused(keys: KeySet, payload: str) -> None:
    with pytest.raises(Unauthorized):
        verifier(keys).verify(token(payload), NOW)


def test_missing_exp_and_sub(keys: KeySet) -> None:
    with pytest.raises(Unauthorized, match="exp"):
        verifier(keys).verify(token({"sub": "alice"}), NOW)
    with pytest.raises(Unauthorized, match="sub"):
        verifier(keys).verify(token({"exp": NOW + 60}), NOW)


@pytest.mark.parametrize(
    "sub", ["", " alice", "alice ", "a" * 65, "a\x00b", "a\nb", 7, None, ["alice"], {"a": 1}, True]
)
def test_sub_must_be_a_user_id(keys: KeySet, sub: object) -> None:
    with pytest.raises(Unauthorized, match="sub"):
        verifier(keys).verify(token({"sub": sub, "exp": NOW + 60}), NOW)


@pytest.mark.parametrize("aud", ["Chat", "", [], ["other"], [["chat"]], 5, {"chat": 1}, None])
def test_another_audience_is_refused(keys: KeySet, aud: object) -> None:
    with pytest.raises(Unauthorized, match="aud"):
        verifier(keys, "chat").verify(token({**GOOD, "aud": aud}), NOW)


def test_a_token_for_somebody_is_refused_by_a_server_without_a_name(keys: KeySet) -> None:
    with pytest.raises(Unauthorized, match="aud"):
        verifier(keys).verify(token({**GOOD, "aud": "chat"}), NOW)


@pytest.mark.parametrize("iss", ["Login", "", ["login"], 5, None])
def test_another_issuer_is_refused(keys: KeySet, iss: object) -> None:
    with pytest.raises(Unauthorized, match="iss"):
        verifier(keys, issuer="login").verify(token({**GOOD, "iss": iss}), NOW)


def test_a_missing_audience_or_issuer_is_refused(keys: KeySet) -> None:
    with pytest.raises(Unauthorized, match="aud"):
        verifier(keys, "chat").verify(token(GOOD), NOW)
    with pytest.raises(Unauthorized, match="iss"):
        verifier(keys, issuer="login").verify(token(GOOD), NOW)


# ---- attacks on header and signature -------------------------------------------------------------


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", None, "HS512", "RS256", "EdDSA", "ES256", 7, ["HS256"]])
@pytest.mark.parametrize("kid", ["hs", "ed", "rs"])
def test_the_header_does_not_choose_the_algorithm(keys: KeySet, alg: object, kid: str) -> None:
    unsigned = f"{b64({'alg': alg, 'kid': kid})}.{b64(GOOD)}."
    for made in (unsigned, unsigned + b64(b"x"), token(GOOD, {"alg": alg, "kid": kid}, b"y" * 32)):
        with pytest.raises(Unauthorized):
            verifier(keys).verify(made, NOW)


def test_a_header_without_alg_is_refused(keys: KeySet) -> None:
    with pytest.raises(Unauthorized):
        verifier(keys).verify(token(GOOD, {"kid": "hs"}), NOW)


def test_a_public_key_is_no_hmac_secret(keys: KeySet) -> None:
    public = RSA_KEY.public_key()
    raw = serialization.PublicFormat.SubjectPublicKeyInfo
    secrets = [
        public.public_bytes(serialization.Encoding.PEM, raw),
        public.public_bytes(serialization.Encoding.DER, raw),
        ED_KEY.public_key().public_bytes_raw(),
        ED["x"].encode(),
        RSA["n"].encode(),
    ]
    for kid in ("rs", "ed"):
        for secret in secrets:
            with pytest.raises(Unauthorized):
                verifier(keys).verify(token(GOOD, {"alg": "HS256", "kid": kid}, secret), NOW)


@pytest.mark.parametrize("kid", ["nobody", "", 7, None, ["hs"], {}, True, "../hs", "HS", "hs\x00"])
def test_an_unknown_kid_is_refused(keys: KeySet, kid: object) -> None:
    with pytest.raises(Unauthorized, match="kid"):
        verifier(keys).verify(token(GOOD, {"alg": "HS256", "kid": kid}), NOW)


def test_a_key_that_the_token_brings_along_is_not_used(keys: KeySet) -> None:
    mine = os.urandom(32)
    brought = {"kty": "oct", "k": b64(mine), "kid": "hs"}
    for extra in (
        {"jwk": brought},
        {"jku": "https://evil.example/k"},
        {"x5u": "https://evil.example/c"},
        {"x5c": ["AA=="]},
    ):
        with pytest.raises(Unauthorized, match="signature"):
            verifier(keys).verify(token(GOOD, {"alg": "HS256", "kid": "hs", **extra}, mine), NOW)


@pytest.mark.parametrize(
    "extra", [{"crit": ["exp"], "exp": 1}, {"crit": []}, {"crit": None}, {"crit": ["b64"], "b64": True}, {"b64": False}]
)
def test_critical_extensions_are_refused(keys: KeySet, extra: dict[str, Any]) -> None:
    with pytest.raises(Unauthorized, match="extensions"):
        verifier(keys).verify(token(GOOD, {"alg": "HS256", "kid": "hs", **extra}), NOW)


@pytest.mark.parametrize("around", ["{}\n", " {}", "{}\r\n", "\t{}", "Bearer {}"])
def test_white_space_is_named_where_the_signature_is_not_to_blame(keys: KeySet, around: str) -> None:
    made = token({"sub": "alice", "exp": NOW + 60})
    with pytest.raises(Unauthorized, match="white space") as refused:
        verifier(keys).verify(around.format(made), NOW)
    assert not any(part in str(refused.value) for part in made.split("."))


def test_any_changed_character_breaks_the_signature(keys: KeySet) -> None:
    made = token(GOOD)
    head, payload, signature = made.split(".")
    other = b64({"sub": "mallory", "exp": NOW + 60})
    for forged in (
        f"{head}.{other}.{signature}",
        f"{head}.{payload}.{'A' + signature[1:] if signature[0] != 'A' else 'B' + signature[1:]}",
        f"{head}.{payload}.",
        f"{head}.{payload}.{signature}AA",
        f"{head}.{payload}.{signature[:-4]}",
        f"{head}.{payload}\ud800.{signature}",
        f"{head}.{payload}.{signature}é",
    ):
        with pytest.raises(Unauthorized):
            verifier(keys).verify(forged, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c",
        "a.b.c.d.e",
        " ",
        "\x00",
        "\ud800.a.b",
        "é.a.b",
        "=.=.=",
        "!!!.???.***",
        "A" * (TOKEN_CHARS_MAX + 1),
        "." * 100,
        b64("[" * 3000) + ".e30.AA",
        b64("[]") + ".e30.AA",
        b64("7") + ".e30.AA",
        b64(b"\xff\xfe") + ".e30.AA",
    ],
)
def test_garbage_is_refused(keys: KeySet, text: str) -> None:
    with pytest.raises(Unauthorized):
        verifier(keys).verify(text, NOW)


def test_a_good_token_over_the_bound_is_refused(keys: KeySet) -> None:
    made = token({**GOOD, "pad": "x" * TOKEN_CHARS_MAX})
    with pytest.raises(Unauthorized, match="8,192"):
        verifier(keys).verify(made, NOW)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "alg": st.sampled_from(["HS256", "none", "RS256"]) | JSON,
        "kid": st.sampled_from(["hs", "rs"]) | JSON,
        "crit": JSON,
        "b64": JSON,
    },
)
CLAIMS = st.fixed_dictionaries(
    {},
    optional={
        "sub": st.just("alice") | JSON,
        "exp": st.just(NOW + 9) | JSON,
        "nbf": JSON,
        "iat": JSON,
        "aud": JSON,
        "iss": JSON,
    },
)
PARTS = st.text(max_size=40) | JSON.map(lambda value: b64(json.dumps(value)))


@given(st.text(max_size=60) | st.builds("{}.{}.{}".format, PARTS, PARTS, PARTS) | st.builds(token, CLAIMS, HEADERS))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_it_is_fed_verify_answers_or_raises_the_two_errors(keys: KeySet, text: str) -> None:
    try:
        identity = verifier(keys).verify(text, NOW)
    except (Unauthorized, TokenExpired):
        return
    assert type(identity.exp_ms) is int
    assert identity.exp_ms < 2**53


# ---- key files -----------------------------------------------------------------------------------

WEAK_RSA = jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024), as_dict=True)
EC_KEY = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()), as_dict=True)
WRONG_KEYS: list[object] = [
    7,
    [],
    {},
    {"kty": "oct"},
    {"kty": ["oct"], "k": "AA"},
    {**OCT, "k": "AAAA"},
    {**OCT, "k": ""},
    {**OCT, "k": 7},
    {**OCT, "k": "é" * 50},
    {**OCT, "k": b64('{"kty":"oct","k":"this looks like a key set"}')},
    {**OCT, "alg": "HS512"},
    {**OCT, "alg": "RS256"},
    {**OCT, "alg": 7},
    {**OCT, "kid": 7},
    {**RSA, "n": 5},
    {**RSA, "n": ""},
    {**RSA, "e": "AA"},
    {**RSA, "alg": "PS256"},
    {**RSA, "alg": "HS256"},
    {**RSA, "d": "AAAA"},
    WEAK_RSA,
    EC_KEY,
    {**ED, "x": "AAAA"},
    {**ED, "d": b64(b"1" * 32)},
    {**ED, "crv": "Ed448"},
    {**ED, "crv": "X25519"},
    {"kty": "OKP", "crv": "Ed25519"},
    jwt.algorithms.OKPAlgorithm.to_jwk(ed448.Ed448PrivateKey.generate(), as_dict=True),
    {**OCT, "use": "enc"},
]


@pytest.mark.parametrize("jwk", WRONG_KEYS, ids=range(len(WRONG_KEYS)))
def test_a_wrong_key_is_one_line_with_a_remedy_and_no_secret(tmp_path: Path, jwk: object) -> None:
    with pytest.raises(SettingError, match=r"^keys_file: .*; .+") as caught:
        KeySet.load(write(tmp_path / "k.json", jwk))
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    for value in jwk.values() if isinstance(jwk, dict) else ():
        assert not (isinstance(value, str) and len(value) > 12 and value in text)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"not json",
        b"[]",
        b"7",
        b"{}",
        b'{"keys":{}}',
        b'{"keys":[]}',
        b'{"keys":' + b"[" * 5000,
        b'{"keys":[{"kty":"oct","k":"' + b"A" * 43 + b'","x5c":' + b"[" * 600 + b"]" * 600 + b"}]}",
        b'{"keys":[' + b'{"use":"enc"},' * 200 + b"{}]}",
        b" " * ((1 << 20) + 1),
    ],
)
def test_a_file_that_is_no_key_set_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "k\n.json"
    path.write_bytes(content)
    with pytest.raises(SettingError, match=r"^keys_file: .*; .+") as caught:
        KeySet.load(path)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "k.json", OCT)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with pytest.raises(SettingError, match="byte order mark"):
        KeySet.load(path)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^keys_file: .* cannot be read: .*; name a file"):
        KeySet.load(tmp_path)


def test_a_file_that_is_not_there_is_one_line_with_the_command_that_makes_it(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path / "a" / "b"):
        with pytest.raises(SettingError, match=r"^keys_file: .* is not there; make it by `chatd keys new`"):
            KeySet.load(path)


def test_kids_must_tell_the_keys_apart(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="twice"):
        KeySet.load(write(tmp_path / "k.json", OCT, {**ED, "kid": "hs"}))
    with pytest.raises(SettingError, match="without `kid`"):
        KeySet.load(write(tmp_path / "k.json", OCT, {name: value for name, value in ED.items() if name != "kid"}))


def test_keys_for_encryption_are_passed_over(tmp_path: Path) -> None:
    keys = KeySet.load(write(tmp_path / "k.json", {**RSA_PUBLIC, "kid": "e", "use": "enc", "alg": "RSA-OAEP"}, OCT))
    assert verifier(keys).verify(issue(keys, ALICE, 9, NOW, None, None), NOW).user == ALICE


@pytest.mark.parametrize(
    ("jwk", "mode", "said"),
    [
        (OCT, 0o600, 0),
        (OCT, 0o640, 0),
        (OCT, 0o644, 1),
        (OCT, 0o666, 2),
        (OCT, 0o660, 1),
        (ED_PUBLIC, 0o644, 0),
        (ED_PUBLIC, 0o646, 1),
        (RSA, 0o604, 1),
    ],
)
def test_a_key_file_open_to_others_is_warned_of(tmp_path: Path, jwk: dict[str, Any], mode: int, said: int) -> None:
    warnings = KeySet.load(write(tmp_path / "k.json", jwk, mode=mode)).warnings
    assert len(warnings) == said
    assert all("; chmod " in warning and "\n" not in warning for warning in warnings)


# ---- the development key -------------------------------------------------------------------------


def test_the_development_key_is_made_once_and_private(tmp_path: Path) -> None:
    data_dir = tmp_path / "deep" / "data"
    made = issue(KeySet.development(data_dir), ALICE, 9, NOW, None, None)
    path = data_dir / DEVELOPMENT_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert data_dir.stat().st_mode & 0o777 == 0o700
    again = KeySet.development(data_dir)
    assert again.warnings == ()
    assert verifier(again).verify(made, NOW).user == ALICE
    assert [entry.name for entry in data_dir.iterdir()] == [DEVELOPMENT_FILE]


def test_another_data_dir_has_another_key(tmp_path: Path) -> None:
    made = issue(KeySet.development(tmp_path / "a"), ALICE, 9, NOW, None, None)
    with pytest.raises(Unauthorized, match="signature"):
        verifier(KeySet.development(tmp_path / "b")).verify(made, NOW)


def test_processes_that_start_together_share_one_key(tmp_path: Path) -> None:
    start = threading.Barrier(8)
    made: list[str] = []

    def run() -> None:
        start.wait()
        made.append(issue(KeySet.development(tmp_path / "data"), ALICE, 9, NOW, None, None))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check = verifier(KeySet.development(tmp_path / "data"))
    assert [check.verify(text, NOW).user for text in made] == [ALICE] * 8
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == [DEVELOPMENT_FILE]


def test_a_data_dir_that_cannot_hold_the_key_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"^data_dir: .*; give a --data-dir"):
        KeySet.development(tmp_path / "file" / "data")


def test_a_spoilt_development_key_is_one_line(tmp_path: Path) -> None:
    (tmp_path / DEVELOPMENT_FILE).write_text("{")
    with pytest.raises(SettingError, match="is not JSON"):
        KeySet.development(tmp_path)
