"""The keys file, as `chatd keys new|list` writes and shows it.

No key is ever overwritten: a new one is appended, and a file that is not a key set is left as it
is. Owner, group and mode of an existing file stay. A node that reads the file at the same time sees
the old file or the new one (atomic_file.py).
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import grp
import os
import secrets
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import orjson
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from jwt.algorithms import OKPAlgorithm, RSAAlgorithm

from chatd import atomic_file, config
from chatd.atomic_file import Access
from chatd.chat import auth
from chatd.errors import SettingError

Algorithm = Literal["HS256", "EdDSA", "RS256"]

RSA_BITS: Final = 3072
GROUP_MODE: Final = 0o640
KID_CHARS_MAX: Final = 64


def add(path: Path, algorithm: Algorithm, kid: str | None, group: str | None) -> str:
    """Make a key and append it to the keys file, which is made if missing; returns its `kid`.

    Raises SettingError.
    """
    access = Access() if group is None else Access(GROUP_MODE, gid=_gid(group))
    if kid is not None and not (kid.isprintable() and 0 < len(kid) <= KID_CHARS_MAX):
        raise SettingError(f"--kid: give 1 to {KID_CHARS_MAX} printable characters")
    try:
        path = path.resolve()  # a symbolic link stays one
        with _locked(path.parent):
            return _add(path, algorithm, kid, access)
    except (OSError, ValueError, RuntimeError) as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise SettingError(
            f"keys_file: cannot write {path}: {reason}; make its folder, and run this as a user who may write there"
        ) from None


def _add(path: Path, algorithm: Algorithm, kid: str | None, access: Access) -> str:
    content: dict[str, Any] = {"keys": []}
    taken: set[str | None] = set()
    if is_there := path.exists():
        taken = {key.kid for key in auth.KeySet.load(path).all()}
        if None in taken:
            raise SettingError(
                f"keys_file: {path} has a key without `kid`, which allows no second; give it one, and its tokens too"
            )
        content = orjson.loads(path.read_bytes())
        was = path.stat()
        access = Access(stat.S_IMODE(was.st_mode), was.st_uid, was.st_gid)
    if kid in taken:
        raise SettingError(f"--kid: {path} has a key {kid} already, and keys are not overwritten; give another")
    if len(content["keys"]) >= auth.KEYS_MAX:
        raise SettingError(
            f"keys_file: {path} has {auth.KEYS_MAX} keys, the most there can be; remove those whose tokens have ended"
        )
    kid = kid or _free_kid(taken)
    content["keys"].append(make(algorithm, kid))
    atomic_file.write(
        path, orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE), access, replace=is_there
    )
    return kid


def make(algorithm: Algorithm, kid: str) -> dict[str, Any]:
    """A new key, as a JWK."""
    if algorithm == "HS256":
        secret = base64.urlsafe_b64encode(secrets.token_bytes(auth.SECRET_BYTES_MIN)).rstrip(b"=").decode()
        return {"kty": "oct", "kid": kid, "alg": algorithm, "k": secret}
    if algorithm == "EdDSA":
        jwk = OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate(), as_dict=True)
    else:
        jwk = RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, RSA_BITS), as_dict=True)
    return {
        "kty": jwk.pop("kty"),
        "kid": kid,
        "alg": algorithm,
        "use": "sig",
        **{k: v for k, v in jwk.items() if k != "key_ops"},
    }


def table(keys: auth.KeySet) -> str:
    """A table of the keys for people, without their secrets."""
    rows = [("KID", "ALG", "USE")]
    rows += [
        (config.one_line(k.kid or "(none)"), k.checks.algorithm_name, "signs and checks" if k.signs else "checks only")
        for k in keys.all()
    ]
    widths = [max(len(row[n]) for row in rows) for n in range(2)]
    return "\n".join(f"{kid:<{widths[0]}}  {alg:<{widths[1]}}  {use}" for kid, alg, use in rows)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock, so that two processes that add a key do it one after the other."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _free_kid(taken: set[str | None]) -> str:
    """A `kid` from the date of today, with a number if that is taken."""
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    names = [today, *(f"{today}-{n}" for n in range(2, auth.KEYS_MAX + 2))]
    return next(name for name in names if name not in taken)


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        raise SettingError(f"--group: there is no group {group}; make it by `groupadd --system {group}`") from None
