"""One good request of each type, as a client writes it.

Tests take one and spoil what they are about.
"""

from __future__ import annotations

import json
from typing import Any, Final

CID: Final = "8c1e62f0-3f64-4f0e-9c58-0d6f6f2b7a11"
OTHER_CID: Final = "0b5c1a52-6a7e-4c55-8f0e-1a2b3c4d5e6f"

REQUESTS: Final[dict[str, dict[str, Any]]] = {
    "hello": {
        "t": "hello",
        "v": 1,
        "token": "eyJ.a.b",
        "device": "phone-7c1",
        "epoch": "5f1c",
        "cursors": {"12": 57, "90": 0},
        "since": "731",
        "watch": ["bob", "carol"],
        "state": "away",
        "features": ["x"],
    },
    "send": {"t": "send", "to": "bob", "cid": CID, "body": "hi", "retry": True},
    "edit": {"t": "edit", "c": "12", "cid": CID, "ref": 64, "body": "hi there"},
    "delete": {"t": "delete", "c": "12", "cid": CID, "ref": 64},
    "ack": {"t": "ack", "c": "12", "seq": 61},
    "read": {"t": "read", "to": "bob", "seq": 61},
    "history": {"t": "history", "c": "12", "before": 61, "limit": 20},
    "conversations": {"t": "conversations", "limit": 20, "cursor": "1.2"},
    "typing": {"t": "typing", "c": "12"},
    "presence": {"t": "presence", "state": "away"},
    "watch": {"t": "watch", "users": ["bob", "carol"]},
    "skip": {"t": "skip", "c": "12", "cid": CID},
    "refresh": {"t": "refresh", "token": "eyJ.a.b"},
    "ping": {"t": "ping"},
}


def request(t: str, id: int = 1, /, **keys: object) -> bytes:
    """The sample of a type with some of its keys set anew; a key set to `...` is left out."""
    facts = {"id": id, **REQUESTS[t], **keys}
    return json.dumps({key: value for key, value in facts.items() if value is not ...}, ensure_ascii=False).encode()
