"""Authentication: JSON Web Tokens (RFC 7519), checked against a set of keys.

    KeySet.load(file) ─► KeySet ─► Verifier.verify(token, now) ─► Identity

PyJWT does signatures and the compact form. What a token must claim is decided here, because time is
an argument and the library reads a clock of its own. The rules:

- The key decides the algorithm. The token's header chooses a key by `kid` and nothing else: `alg`
  must be that of the key. So neither `none` nor a public RSA key used as an HMAC secret passes;
  `jwk`, `jku` and `x5u` are ignored; `crit` and `b64` are refused.
- `exp` and `sub` are required; `sub` is the user id. `nbf` and `iat` are obeyed where present,
  `aud` and `iss` as the settings say.
- `token_ttl_max_s` bounds `exp` minus `iat`, both by the issuer's clock; for a token without `iat`
  it bounds the time left until `exp`.
- Nothing is read from the payload before the signature holds. `verify` raises `Unauthorized` or
  `TokenExpired`, whatever it is given.

Keys are a JWK Set (RFC 7517), so that an identity provider's file can be used as it is; several
keys are a rotation under way. `KeySet` and `Verifier` are immutable: on SIGHUP the server makes new
ones and swaps them. An `Identity` has the key that its token was checked with, so that the sessions
of a key end when it is removed (net/revocation.py). No message here holds any part of a key or
token.
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import hashlib
import os
import secrets
import stat
from typing import TYPE_CHECKING, Any, Final

import jwt
import orjson

from chatd import atomic_file
from chatd.core.identity import Identity, Key
from chatd.errors import SettingError, TokenExpired, Unauthorized
from chatd.ids import UserId, user_id

if TYPE_CHECKING:
    from pathlib import Path

ALGORITHMS: Final = {"oct": "HS256", "OKP": "EdDSA", "RSA": "RS256"}  # by `kty`
# members of a JWK; RFC 7518 section 6.3.2, RFC 8037 section 2
PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})
SECRET_BYTES_MIN: Final = 32  # as long as the hash; RFC 7518 section 3.2
RSA_BITS_MIN: Final = 2048  # RFC 7518 section 3.3
RSA_BITS_MAX: Final = 8192  # with more bits one hello costs a millisecond
TOKEN_CHARS_MAX: Final = 8192
KEYS_MAX: Final = 100
FILE_BYTES_MAX: Final = 1 << 20
TIME_S_MAX: Final = 253_402_300_799  # the end of the year 9999; a time in milliseconds is later
DEVELOPMENT_FILE: Final = "development-key.json"


class KeySet:
    """An immutable set of keys. `warnings` are sentences for the log."""

    __slots__ = ("_by_kid", "_unnamed", "warnings")

    def __init__(self, keys: list[Key], warnings: tuple[str, ...] = ()) -> None:
        self._by_kid = {key.kid: key for key in keys}
        self._unnamed = keys[0]._replace(kid=None) if len(keys) == 1 else None
        self.warnings = warnings

    @classmethod
    def load(cls, path: Path, known: KeySet | None = None) -> KeySet:
        """Read a JWK Set.

        Raises SettingError: one line with the remedy, and nothing of the keys in it. `known`: an
        earlier set. Keys that are unchanged in the file are taken from it: making an RSA key with
        its private half takes 200 ms, and a reload runs in the loop.
        """
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                data = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            raise _wrong(path, "is not there", "make it by `chatd keys new`, or name the file that is") from None
        except OSError as error:
            raise _wrong(path, f"cannot be read: {error.strerror}", "name a file that this user may read") from None
        keys = _parse(path, data, {} if known is None else {key.made_of: key for key in known.all()})
        warnings = []
        if mode & 0o004 and any(key.signs for key in keys):
            warnings.append(f"keys_file: everybody on this machine can read {path} and make tokens; chmod o-rwx it")
        if mode & 0o022:
            warnings.append(f"keys_file: others than its owner can write {path} and become anybody; chmod go-w it")
        return cls(keys, tuple(warnings))

    @classmethod
    def development(cls, data_dir: Path, known: KeySet | None = None) -> KeySet:
        """The key that chatd makes itself, once for each `data_dir`. Raises SettingError.

        Several processes may start at the same time.
        """
        path = data_dir / DEVELOPMENT_FILE
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                _make_development_key(path)
        except OSError as error:
            raise SettingError(
                f"data_dir: cannot write {path}: {error.strerror}; give a --data-dir that this user may write,"
                " or a --keys-file"
            ) from None
        return cls.load(path, known)

    def find(self, kid: object) -> Key | None:
        """The key that a token's header names by `kid`; without `kid`, the set's only key."""
        if isinstance(kid, str):
            return self._by_kid.get(kid)
        return self._unnamed if kid is None else None

    def keeps(self, key: Key) -> bool:
        """Whether this set still has a key of an earlier set, under the name by which it was found.

        A key that was found without a name may have any now: giving it a `kid`, or adding a second
        key, removes nothing.
        """
        if key.kid is None:
            return any(key.is_same(one) for one in self._by_kid.values())
        one = self._by_kid.get(key.kid)
        return one is not None and key.is_same(one)

    def all(self) -> list[Key]:
        """The keys, in the order of the file."""
        return list(self._by_kid.values())

    def signing(self) -> tuple[str | None, jwt.PyJWK]:
        """The first key that can sign, and its `kid`. Raises SettingError if there is none."""
        for key in self._by_kid.values():
            if key.signs is not None:
                return key.kid, key.signs
        raise SettingError(
            "keys_file: has public keys only, so tokens cannot be made here; make them where the private key is"
        )


def _wrong(path: Path, what: str, remedy: str) -> SettingError:
    text = f"keys_file: {path} {what}; {remedy}"
    return SettingError("".join(char if char.isprintable() else " " for char in text))


def _make_development_key(path: Path) -> None:
    secret = base64.urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES_MIN)).rstrip(b"=").decode()
    text = orjson.dumps({"keys": [{"kty": "oct", "kid": "development", "alg": "HS256", "k": secret}]})
    with contextlib.suppress(FileExistsError):  # another process was first: its key is used
        atomic_file.write(path, text, atomic_file.Access(), replace=False)


# ---- a JWK Set -----------------------------------------------------------------------------------


def _parse(path: Path, data: bytes, known: dict[bytes, Key]) -> list[Key]:
    """Parse a JWK Set. `known`: earlier keys, by the digest of their JWK. Raises SettingError."""
    remedy = 'write a JWK Set: {"keys": [{"kty": "oct", "kid": "2026-01", "alg": "HS256", "k": "..."}]}'
    if len(data) > FILE_BYTES_MAX:
        raise _wrong(path, f"has more than {FILE_BYTES_MAX} bytes", remedy)
    if data.startswith(codecs.BOM_UTF8):
        raise _wrong(path, "begins with a byte order mark, which JSON does not allow", "save it as UTF-8 without one")
    try:
        content = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise _wrong(path, "is not JSON", remedy) from None
    items = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise _wrong(path, "has no list `keys`", remedy)
    if len(items) > KEYS_MAX:
        raise _wrong(path, f"has more than {KEYS_MAX} keys", "remove those whose tokens have ended")
    keys = []
    for place, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise _wrong(path, f"has no object as key {place}", remedy)
        if item.get("use") != "enc":  # identity providers list keys for encryption, too
            made_of = _digest(path, place, item)
            keys.append(known.get(made_of) or _parse_key(path, place, item, made_of))
    if not keys:
        raise _wrong(path, "has no key for signatures", remedy)
    kids = [key.kid for key in keys]
    if len(keys) > 1 and None in kids:
        raise _wrong(
            path, "has several keys, and one without `kid`", "give each its own `kid`, as tokens name their key by it"
        )
    if len(set(kids)) < len(kids):
        raise _wrong(path, "has a `kid` twice", "give each key its own")
    return keys


def _digest(path: Path, place: int, item: dict[str, Any]) -> bytes:
    try:
        return hashlib.sha256(orjson.dumps(item, option=orjson.OPT_SORT_KEYS)).digest()
    except orjson.JSONEncodeError:  # orjson reads deeper nesting than it writes
        raise _wrong(
            path, f"has members that make no key, in key {place}", "copy it again from where it was made"
        ) from None


def _parse_key(path: Path, place: int, item: dict[str, Any], made_of: bytes) -> Key:
    kid, kty, alg = item.get("kid"), item.get("kty"), item.get("alg")
    if kid is not None and not isinstance(kid, str):
        raise _wrong(path, f"has a `kid` that is no string, in key {place}", "put it in quotes")
    known = ALGORITHMS.get(kty) if isinstance(kty, str) else None
    if known is None or alg not in (None, known):
        remedy = "use HS256 (kty oct), EdDSA (kty OKP, crv Ed25519) or RS256 (kty RSA)"
        raise _wrong(path, f"has a kind of key that chatd does not take, key {place}", remedy)
    try:
        checks = jwt.PyJWK({name: value for name, value in item.items() if name not in PRIVATE_MEMBERS}, known)
        checks.Algorithm.prepare_key(checks.key)
        signs = jwt.PyJWK(item, known) if kty == "oct" or "d" in item else None
    except Exception:  # of many kinds, from two libraries, and their texts show the key
        raise _wrong(
            path, f"has members that make no key of kty {kty}, in key {place}", "copy it again from where it was made"
        ) from None
    if kty == "oct" and len(checks.key) < SECRET_BYTES_MIN:
        raise _wrong(
            path, f"has a secret under {SECRET_BYTES_MIN} bytes, in key {place}", "make one by `chatd keys new`"
        )
    if kty == "OKP" and item.get("crv") != "Ed25519":
        raise _wrong(path, f"has a curve that chatd does not take, in key {place}", "use crv Ed25519")
    if kty == "RSA" and not RSA_BITS_MIN <= checks.key.key_size <= RSA_BITS_MAX:
        raise _wrong(
            path, f"has an RSA key that is not of {RSA_BITS_MIN} to {RSA_BITS_MAX} bits, key {place}", "make another"
        )
    return Key(kid, checks, signs, made_of)


# ---- tokens --------------------------------------------------------------------------------------


class Verifier:
    """Checks tokens against keys and the settings for claims. Immutable.

    `ttl_max_s`: 0 allows any time to live.
    """

    __slots__ = ("_audience", "_issuer", "_jws", "_keys", "_leeway_s", "_ttl_max_s")

    def __init__(
        self, keys: KeySet, audience: str | None, issuer: str | None, leeway_s: float, ttl_max_s: int = 0
    ) -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer
        self._leeway_s = leeway_s
        self._ttl_max_s = ttl_max_s
        self._jws = jwt.PyJWS(algorithms=list(ALGORITHMS.values()))

    def verify(self, token: str, now_s: float) -> Identity:
        """Check a token; gives whose it is. `now_s`: since 1970.

        Raises TokenExpired past its `exp`, Unauthorized for everything else that is wrong.
        """
        if len(token) > TOKEN_CHARS_MAX or not token.isascii() or token.count(".") != 2:
            raise Unauthorized("this is no token: three parts of base64url, in 8,192 characters at most")
        if token.split() != [token]:
            raise Unauthorized("the token has white space or a line end in it; send it without, as it was signed")
        key = self._keys.find(_header(token).get("kid"))
        if key is None:
            raise Unauthorized("the token's `kid` names no key of this server")
        try:
            payload = self._jws.decode(token, key.checks, [key.checks.algorithm_name])
        except jwt.PyJWTError:
            raise Unauthorized("the token's signature does not hold") from None
        return self._judge(_claims(payload), key, now_s)

    def _judge(self, claims: dict[str, Any], key: Key, now_s: float) -> Identity:
        exp = _time(claims, "exp")
        if exp is None:
            raise Unauthorized("the token has no `exp`")
        if now_s >= exp + self._leeway_s:
            raise TokenExpired("the token has expired")
        for name in ("nbf", "iat"):
            since = _time(claims, name)
            if since is not None and now_s < since - self._leeway_s:
                raise Unauthorized(f"the token is not valid yet: its `{name}` lies ahead")
        self._judge_ttl(exp, _time(claims, "iat"), now_s)
        self._judge_parties(claims)
        return Identity(_subject(claims), int((exp + self._leeway_s) * 1000), key)

    def _judge_ttl(self, exp: float, iat: float | None, now_s: float) -> None:
        if not self._ttl_max_s:
            return
        # Without `iat` the issuer's clock is compared with ours; the two may differ by the leeway
        ttl_s = exp - now_s - self._leeway_s if iat is None else exp - iat
        if ttl_s > self._ttl_max_s:
            since = "what is left until `exp`" if iat is None else "`exp` minus `iat`"
            raise Unauthorized(
                f"the token is valid for too long: {since} may be {self._ttl_max_s} s at most (token_ttl_max_s)"
            )

    def _judge_parties(self, claims: dict[str, Any]) -> None:
        audience = claims.get("aud")
        if self._audience is None:
            # RFC 7519 section 4.1.3: a recipient that an `aud` does not name must refuse
            if audience is not None:
                raise Unauthorized("the token has an `aud`, and this server goes by no name (jwt_audience)")
        elif self._audience != audience and not (isinstance(audience, list) and self._audience in audience):
            raise Unauthorized("the token's `aud` is not this server")
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise Unauthorized("the token's `iss` is not who may issue it")


def _header(token: str) -> dict[str, Any]:
    """The unverified header: it may choose a key or have the token refused, nothing else."""
    try:
        part = token[: token.index(".")]
        header = orjson.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except ValueError:
        raise Unauthorized("the token's header is not JSON in base64url") from None
    if not isinstance(header, dict):
        raise Unauthorized("the token's header is no object")
    if "crit" in header or "b64" in header:
        # RFC 7515 section 4.1.11: a recipient that does not understand an extension must refuse
        raise Unauthorized("the token wants extensions that this server does not have")
    return header


def _claims(payload: bytes) -> dict[str, Any]:
    try:
        claims = orjson.loads(payload)
    except orjson.JSONDecodeError:
        claims = None
    if not isinstance(claims, dict):
        raise Unauthorized("the token's payload is no JSON object")
    return claims


def _time(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= TIME_S_MAX:
        raise Unauthorized(f"the token's `{name}` is no time in seconds since 1970")
    return float(value)


def _subject(claims: dict[str, Any]) -> UserId:
    subject = claims.get("sub")
    if not isinstance(subject, str):
        raise Unauthorized("the token has no `sub`, a string")
    try:
        return user_id(subject)
    except ValueError as error:
        raise Unauthorized(f"the token's `sub` is no user id: {error}") from None


def issue(keys: KeySet, user: UserId, ttl_s: float, now_s: float, audience: str | None, issuer: str | None) -> str:
    """A token for `user`, signed by the first key that can. Raises SettingError if none can."""
    kid, key = keys.signing()
    claims: dict[str, Any] = {"sub": user, "iat": int(now_s), "exp": int(now_s + ttl_s)}
    if audience is not None:
        claims["aud"] = audience
    if issuer is not None:
        claims["iss"] = issuer
    return jwt.PyJWS().encode(
        orjson.dumps(claims), key, key.algorithm_name, headers=None if kid is None else {"kid": kid}
    )
