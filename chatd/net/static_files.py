"""The files of the page, read once at start: for each, its encodings and their headers.

    folder ──read──► by name: StaticFile ──Accept-Encoding, If-None-Match──► HttpResponse
      ├── worker.js, icon.svg, ...     may change: no-cache, with a strong ETag
      ├── index.html                   the same; `document` writes values into it
      ├── assets/NAME-HASH.js, ...     named by their content: immutable
      └── FILE.br, FILE.gz             the same, compressed by the build; never a name of their own

Only these names are served: a path is looked up, never opened. Nothing is compressed here, so a
request costs a lookup and a comparison. Each encoding has an ETag of its own (RFC 9110, 8.8.3), and
all answers of a file that has encodings have `Vary`. Pure after `read`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from chatd.wire.http import HttpResponse

TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
# The folder whose names are the hashes of their contents (web/vite.config.ts).
HASHED: Final = "assets"
IMMUTABLE: Final = "public, max-age=31536000, immutable"
REVALIDATED: Final = "no-cache"
# The better first. The encoding `identity` is always served where none of them is accepted.
ENCODINGS: Final = {"br": ".br", "gzip": ".gz"}
_HEADERS_OF_304: Final = frozenset({"Content-Type", "Content-Encoding"})  # those that a 304 does not have


class RequestHeaders(Protocol):
    """The part of websockets' `Headers` that is read here."""

    def get_all(self, key: str, /) -> list[str]: ...


class Representation(NamedTuple):
    """A file in one encoding."""

    etag: str
    response: HttpResponse
    unchanged: HttpResponse  # the 304


class StaticFile(NamedTuple):
    """A file in all its encodings; `identity` is one."""

    by_encoding: Mapping[str, Representation]

    def respond(self, headers: RequestHeaders) -> HttpResponse:
        """The response to a GET. Never raises, whatever the headers are."""
        found = self.by_encoding[chosen(self.by_encoding, headers.get_all("Accept-Encoding"))]
        return found.unchanged if is_known(found.etag, headers.get_all("If-None-Match")) else found.response


def read(folder: Path, security: tuple[tuple[str, str], ...]) -> dict[str, StaticFile]:
    """The files of `folder` by their path below it, such as `assets/index-1a2b3c4d.js`."""
    files = [*folder.iterdir(), *(folder / HASHED).glob("*")]
    return {
        file.relative_to(folder).as_posix(): _file(file, security, is_hashed=file.parent != folder)
        for file in sorted(files)
        if file.suffix in TYPES
    }


def document(path: Path, security: tuple[tuple[str, str], ...], **values: str) -> StaticFile:
    """An HTML file with these values in place of `{name}`, unescaped.

    It has no compressed encoding.
    """
    body = path.read_bytes()
    for name, value in values.items():
        body = body.replace(f"{{{name}}}".encode(), value.encode())
    return _encoded({"identity": body}, TYPES[path.suffix], security, is_hashed=False)


def _file(path: Path, security: tuple[tuple[str, str], ...], *, is_hashed: bool) -> StaticFile:
    bodies = {"identity": path.read_bytes()}
    for encoding, suffix in ENCODINGS.items():
        compressed = path.with_name(path.name + suffix)
        if compressed.is_file():
            bodies[encoding] = compressed.read_bytes()
    return _encoded(bodies, TYPES[path.suffix], security, is_hashed=is_hashed)


def _encoded(
    bodies: Mapping[str, bytes], content_type: str, security: tuple[tuple[str, str], ...], *, is_hashed: bool
) -> StaticFile:
    digest = hashlib.sha256(bodies["identity"]).hexdigest()[:32]
    common: tuple[tuple[str, str], ...] = (("Cache-Control", IMMUTABLE if is_hashed else REVALIDATED),)
    if len(bodies) > 1:
        common = (*common, ("Vary", "Accept-Encoding"))
    by_encoding = {}
    for encoding, body in bodies.items():
        etag = f'"{digest}"' if encoding == "identity" else f'"{digest}-{encoding}"'
        coding = () if encoding == "identity" else (("Content-Encoding", encoding),)
        headers = (("Content-Type", content_type), *coding, ("ETag", etag), *common, *security)
        by_encoding[encoding] = Representation(
            etag,
            HttpResponse(HTTPStatus.OK, headers, body),
            HttpResponse(HTTPStatus.NOT_MODIFIED, tuple(h for h in headers if h[0] not in _HEADERS_OF_304), b""),
        )
    return StaticFile(by_encoding)


def chosen(available: Iterable[str], accepted: Iterable[str]) -> str:
    """The encoding to serve (RFC 9110, 12.5.3): the highest weight, of equal ones the smaller file.

    `accepted`: the values of all `Accept-Encoding` headers. What cannot be read is not accepted.
    Where nothing available is accepted, `identity` is served all the same.
    """
    weights: dict[str, float] = {}
    for item in ",".join(accepted).split(","):
        coding, _, parameters = item.partition(";")
        weights[coding.strip().lower()] = _weight(parameters)
    rest = weights.get("*", 0.0)
    there = set(available)
    best, best_weight = "identity", 0.0
    for encoding in ENCODINGS:
        weight = weights.get(encoding, rest)
        if encoding in there and weight > best_weight:
            best, best_weight = encoding, weight
    # `identity` is as good as what was not named, unless it is named with a higher weight.
    return "identity" if weights.get("identity", 0.0) > best_weight else best


def _weight(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if not name:
        return 1.0
    digits = value.strip()
    whole, _, part = digits.partition(".")
    is_weight = name.strip().lower() == "q" and whole in {"0", "1"} and len(part) <= 3 and (digits.isascii())
    if not is_weight or (part and not part.isdigit()):
        return 0.0
    return min(float(f"{whole}.{part or 0}"), 1.0)


def is_known(etag: str, conditions: Iterable[str]) -> bool:
    """Whether the client has this representation, by the values of all `If-None-Match` headers.

    The comparison is the weak one (RFC 9110, 13.1.2): a proxy that compressed our answer marks its
    ETag weak, and the file is the same.
    """
    known = [one.strip().removeprefix("W/") for one in ",".join(conditions).split(",")]
    return etag in known or known == ["*"]
