"""Checks an app's arguments before they become a frame. Pure.

Only what would make a frame that cannot be sent is checked; the rest is left to the server.
"""

from __future__ import annotations

import uuid

from chatd.client.errors import RequestError
from chatd.ids import user_id


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
