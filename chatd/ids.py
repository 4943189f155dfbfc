"""Names of things, as types: what is a user must not be passed where a conversation is meant.

Pure. On the wire a conversation is a string; inside it is PostgreSQL's bigint.
"""

from __future__ import annotations

import unicodedata
from typing import NewType

UserId = NewType("UserId", str)
ConvId = NewType("ConvId", int)
DeviceId = NewType("DeviceId", str)
Seq = NewType("Seq", int)
Cid = NewType("Cid", str)

USER_CHARS_MAX = 64


def user_id(text: str) -> UserId:
    """Check a user id: 1-64 printable characters in NFC without outer spaces.

    Raises ValueError with a sentence that says what is wrong.
    """
    if not 1 <= len(text) <= USER_CHARS_MAX:
        raise ValueError(f"a user id has 1 to {USER_CHARS_MAX} characters")
    if not text.isprintable():
        raise ValueError("a user id has printable characters only")
    if text != text.strip():
        raise ValueError("a user id has no spaces at its ends")
    if not unicodedata.is_normalized("NFC", text):
        raise ValueError("a user id is in Unicode's normal form NFC")
    return UserId(text)
