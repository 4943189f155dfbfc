"""The ids as types, so that mypy refuses a user where a conversation is expected. Pure.

On the wire a conversation id is a string; inside it is PostgreSQL's bigint.
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

# Control characters and lone surrogates: categories Cc and Cs, which never change.
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def user_id(text: str) -> UserId:
    """Check the id of a user who may be known: 1-64 characters, no controls, no outer spaces.

    Lone surrogates are refused too. The rule is the same in all versions and accepts every id that
    one of them accepted, so any id that a user, a node or the database names can be looked up. New
    ids are checked by `unicode_ids.new_user_id`. Raises ValueError with a sentence that says what
    is wrong.
    """
    if not 1 <= len(text) <= USER_CHARS_MAX:
        raise ValueError(f"a user id has 1 to {USER_CHARS_MAX} characters")
    # The first check is fast, and true only of texts that the second would accept.
    if not text.isprintable() and _NO_TEXT.search(text):
        raise ValueError("a user id has no control characters")
    if text[0] == " " or text[-1] == " ":
        raise ValueError("a user id has no spaces at its ends")
    return UserId(text)
