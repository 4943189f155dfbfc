"""Answers plain HTTP on the chat port: the page at `/`, its files, `/healthz`, `/dev/token`.

`/dev/token` is there in development mode only; any other path is 404. Pure after construction.

The files are read once, at start, and only these are served: a path is looked up, never opened. The
headers (CSP) take from the page every permission that it does not need, because it shows what users
send each other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from websockets.datastructures import Headers, MultipleValuesError

from chatd.ids import UserId, user_id
from chatd.wire import http
from chatd.wire.http import HttpResponse

FOLDER: Final = Path(__file__).parents[1] / "web"
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY: Final = (
    ("Content-Security-Policy", CSP),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
DYNAMIC: Final = (("Cache-Control", "no-store"), *SECURITY)
DEV_HEADER: Final = "X-Chatd-Dev"


class Pages:
    """Answers requests by path.

    `issue`: makes a token for a user; None outside development mode. `remote`: development mode is
    open to the network.
    """

    def __init__(self, issue: Callable[[UserId], str] | None, *, remote: bool = False, folder: Path = FOLDER) -> None:
        self._issue, self._remote = issue, remote
        self._files: Mapping[str, HttpResponse] = {
            f"/{file.name}": _file(file) for file in sorted(folder.iterdir()) if file.suffix in TYPES
        }
        self._files = {"/": self._files["/index.html"], **self._files} if "/index.html" in self._files else self._files

    def respond(self, method: str, path: str, headers: Headers) -> HttpResponse:
        """The response to a request that is not for a WebSocket."""
        if method not in http.METHODS:
            return HttpResponse(
                HTTPStatus.METHOD_NOT_ALLOWED,
                (("Allow", "GET, HEAD"), ("Content-Type", "text/plain")),
                b"Method Not Allowed\n",
            )
        name, _, query = path.partition("?")
        if name == "/healthz":
            page = HttpResponse(HTTPStatus.OK, (("Content-Type", http.TEXT), ("Cache-Control", "no-store")), b"ok\n")
        elif name == "/dev/token" and self._issue is not None and _own_page(headers, self._remote):
            page = self._token(query)
        else:
            page = self._files.get(name) or http.plain(HTTPStatus.NOT_FOUND)
        return page if method == "GET" else page._replace(body=b"")

    def _token(self, query: str) -> HttpResponse:
        assert self._issue is not None
        try:
            user = user_id(parse_qs(query, max_num_fields=4, errors="strict").get("user", [""])[0])
        except ValueError as e:  # UnicodeDecodeError is one
            wrong = "not UTF-8" if isinstance(e, UnicodeDecodeError) else str(e)
            return http.json(HTTPStatus.BAD_REQUEST, {"error": wrong}, *DYNAMIC)
        return http.json(HTTPStatus.OK, {"token": self._issue(user), "user": user}, *DYNAMIC)


def _own_page(headers: Headers, remote: bool) -> bool:
    """True if our own page asks.

    The header forces other origins into a CORS preflight, which is never answered. The host must be
    loopback, against DNS rebinding.
    """
    try:
        if headers.get(DEV_HEADER) is None:
            return False
        host = urlsplit(f"//{headers.get('Host', '')}").hostname or ""
    except (MultipleValuesError, ValueError):
        return False
    if remote or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _file(path: Path) -> HttpResponse:
    headers = (("Content-Type", TYPES[path.suffix]), ("Cache-Control", "no-cache"), *SECURITY)
    return HttpResponse(HTTPStatus.OK, headers, path.read_bytes())
