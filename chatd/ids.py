"""Names of things, as types: what is a user must not be passed where a conversation is meant.

Pure. On the wire a conversation is a string; inside it is PostgreSQL's bigint.
"""

from __future__ import annotations

import re
from typing import NewType

UserId = NewType("UserId", str)
ConvId = NewType("ConvId", int)
DeviceId = NewType("DeviceId", str)
Seq = NewType("Seq", int)
Cid = NewType("Cid", str)

USER_CHARS_MAX = 64

# Control characters and lone surrogates: categories Cc and Cs, which never change
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def user_id(text: str) -> UserId:
    """Check what names somebody who may be known:

    1-64 characters without controls, lone surrogates and outer spaces.

    The rule is the same in all versions, and takes every id that one of them took: whatever a user,
    a node or the database names is looked up by it. What may become a name is judged by
    `unicode_ids.new_user_id`. Raises ValueError with a sentence that says what is wrong.
    """
    if not 1 <= len(text) <= USER_CHARS_MAX:
        raise ValueError(f"a user id has 1 to {USER_CHARS_MAX} characters")
    # The first is quick, and true of no text that the second finds
    if not text.isprintable() and _NO_TEXT.search(text):
        raise ValueError("a user id has no control characters")
    if text[0] == " " or text[-1] == " ":
        raise ValueError("a user id has no spaces at its ends")
    return UserId(text)
