"""Checks an app's arguments before they become a frame. Pure.

Only what would make a frame that cannot be sent is checked; the rest is left to the server.
"""

from __future__ import annotations

import uuid
from typing import Final
from urllib.parse import urlsplit

from chatd.client.errors import RequestError
from chatd.ids import user_id

SCHEMES: Final = {"http": "ws", "https": "wss"}


def check_url(url: str) -> None:
    """Raises ValueError for what no WebSocket can be opened at, with what to write instead."""
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss"):
        better = SCHEMES.get(parts.scheme)
        instead = "" if better is None else f"; write {better}{url[len(parts.scheme) :]}"
        raise ValueError(f"the URL of a chatd begins with ws:// or wss://, and not as {url!r}{instead}")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"the port in {url!r} is none: it is a number from 1 to 65535") from None
    if not parts.hostname or port == 0 or parts.fragment:
        raise ValueError(f"{url!r} names no host and path of a chatd, such as ws://127.0.0.1:8080/ws")


def check_user(peer: str) -> None:
    """Raises RequestError, as the server would answer.

    The server decides by the Unicode version that it knows, so it may refuse more.
    """
    try:
        user_id(peer)
    except ValueError as e:
        raise RequestError("bad_field", str(e), field="to") from None


def check_body(body: str, bytes_max: int) -> None:
    """Raises RequestError, as the server would answer."""
    try:
        size = len(body.encode())
    except UnicodeEncodeError:
        raise RequestError("bad_text", "the body has lone surrogates", field="body") from None
    if size > bytes_max:
        raise RequestError("too_long", f"the body has {size} bytes of UTF-8; {bytes_max} is the most", field="body")


def checked_cid(cid: str) -> str:
    """The cid as the wire writes it. Raises RequestError."""
    try:
        return str(uuid.UUID(cid))
    except ValueError:
        raise RequestError("bad_field", "cid must be a UUID", field="cid") from None
