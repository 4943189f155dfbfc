"""Answers plain HTTP on the chat port: the page at `/`, its files, `/healthz`, `/dev/token`.

`/dev/token` is there in development mode only, and the page where the setting `page` says so; any
other path is 404. Pure after construction.

The files are read once, at start (`net/static_files.py`), and only these are served. The headers
(CSP) take from the page every permission that it does not need, because it shows what users send
each other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qs, urlsplit

from websockets.datastructures import Headers, MultipleValuesError

from chatd.config import Settings
from chatd.ids import UserId, user_id
from chatd.net import static_files
from chatd.net.static_files import StaticFile
from chatd.wire import http
from chatd.wire.http import HttpResponse

FOLDER: Final = Path(__file__).parents[1] / "web"
CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors {}"
)
SECURITY: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
DYNAMIC: Final = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", CSP.format("'none'")),
    *SECURITY,
)
DEV_HEADER: Final = "X-Chatd-Dev"
INDEX: Final = "index.html"


class Pages:
    """Answers requests by path.

    `issue`: makes a token for a user; None where none is given away. `remote`: development mode
    is open to the network. `has_page`: the files are served. `embedders`: origins that may show the
    page in a frame.
    """

    def __init__(
        self,
        issue: Callable[[UserId], str] | None,
        *,
        remote: bool = False,
        has_page: bool = True,
        embedders: Sequence[str] = (),
        folder: Path = FOLDER,
    ) -> None:
        self._issue, self._remote = issue, remote
        headers = (("Content-Security-Policy", CSP.format(" ".join(embedders) or "'none'")), *SECURITY)
        files = static_files.read(folder, headers) if has_page else {}
        self._files = {f"/{name}": file for name, file in files.items()}
        # By whether names are given tokens: the page shows its first screen at once by it
        self._documents: dict[bool, StaticFile] = {}
        if INDEX in files:
            for gives, login in ((True, "name"), (False, "token")):
                self._documents[gives] = static_files.document(folder / INDEX, headers, login=login)

    @classmethod
    def by(cls, settings: Settings, issue: Callable[[UserId], str]) -> Self:
        """As the settings say."""
        return cls(
            issue if settings.gives_tokens else None,
            remote=settings.allow_remote_dev,
            has_page=settings.page != "off",
            embedders=settings.embed_origins,
        )

    def respond(self, method: str, path: str, headers: Headers) -> HttpResponse:
        """The response to a request that is not for a WebSocket; to HEAD the same as to GET."""
        if method not in http.METHODS:
            return HttpResponse(
                HTTPStatus.METHOD_NOT_ALLOWED,
                (("Allow", "GET, HEAD"), ("Content-Type", "text/plain")),
                b"Method Not Allowed\n",
            )
        name, _, query = path.partition("?")
        if name == "/healthz":
            return HttpResponse(HTTPStatus.OK, (("Content-Type", http.TEXT), ("Cache-Control", "no-store")), b"ok\n")
        gives = self._issue is not None and _own_host(headers, self._remote)
        if name == "/dev/token" and gives and _own_page(headers):
            return self._token(query)
        file = self._documents.get(gives) if name in ("/", f"/{INDEX}") else self._files.get(name)
        return http.plain(HTTPStatus.NOT_FOUND) if file is None else file.respond(headers)

    def _token(self, query: str) -> HttpResponse:
        assert self._issue is not None
        try:
            user = user_id(parse_qs(query, max_num_fields=4, errors="strict").get("user", [""])[0])
        except ValueError as e:  # UnicodeDecodeError is one
            wrong = "not UTF-8" if isinstance(e, UnicodeDecodeError) else str(e)
            return http.json(HTTPStatus.BAD_REQUEST, {"error": wrong}, *DYNAMIC)
        return http.json(HTTPStatus.OK, {"token": self._issue(user), "user": user}, *DYNAMIC)


def _own_page(headers: Headers) -> bool:
    """True if our own page asks: the header forces other origins into a CORS preflight, which is
    never answered.
    """
    return len(headers.get_all(DEV_HEADER)) == 1


def _own_host(headers: Headers, remote: bool) -> bool:
    """True if the page is asked for at a host where names are given tokens.

    The host must be loopback, against DNS rebinding; `remote`: any.
    """
    try:
        host = urlsplit(f"//{headers.get('Host', '')}").hostname or ""
    except (MultipleValuesError, ValueError):
        return False
    if remote or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
