"""Documents that are made from `docs/schema/`, for those who want the protocol as one file.

    bundle()      all frames as one JSON Schema: chatd/conformance/frames.schema.json
    asyncapi()    the protocol as AsyncAPI 3: docs/asyncapi.json

`make docs` writes them, and tests/tidy/test_protocol_documents.py holds them as current.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
SCHEMAS: Final = ROOT / "docs" / "schema"


def _moved(value: Any, move: Callable[[str], str]) -> Any:
    """A schema with each `$ref` moved, and without `$schema`."""
    if isinstance(value, list):
        return [_moved(item, move) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: move(item) if key == "$ref" else _moved(item, move) for key, item in value.items() if key != "$schema"}


def _frames() -> dict[str, Any]:
    """`client.send` and so on: the schema of each frame, as it stands in its file."""
    return {
        f"{side}.{path.stem}": json.loads(path.read_text())
        for side in ("client", "server")
        for path in sorted((SCHEMAS / side).glob("*.json"))
    }


def bundle() -> dict[str, Any]:
    """All frames in one JSON Schema."""
    shared = json.loads((SCHEMAS / "defs.json").read_text())

    def move(ref: str) -> str:
        assert ref.startswith(("../defs.json#/$defs/", "#/$defs/")), ref
        return ref.removeprefix("../defs.json")

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "chatd.v1: all frames, made from docs/schema by `make docs`",
        "description": shared["description"],
        "$defs": {name: _moved(schema, move) for name, schema in {**shared["$defs"], **_frames()}.items()},
    }


# What answers each request, besides `err`
REPLIES: Final = {
    "hello": ["welcome"], "ping": ["pong"], "send": ["ok_send"], "edit": ["ok_send"], "delete": ["ok_send"],
    "ack": ["ok_ack"], "read": ["ok_ack"], "watch": ["ok_watch"], "history": ["ok_history"],
    "conversations": ["ok_conversations"], "refresh": ["ok_refresh"],
    "presence": ["ok"], "typing": ["ok"], "skip": ["ok"],
}  # fmt: skip
PUSHES: Final = ("entry", "receipt", "presence", "typing", "notice", "err")


def _draft_07(schema: Any) -> Any:
    """As AsyncAPI reads schemas: by draft 07, which says `dependencies` for `dependentRequired`."""
    if isinstance(schema, list):
        return [_draft_07(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {"dependencies" if key == "dependentRequired" else key: _draft_07(item) for key, item in schema.items()}


def asyncapi() -> dict[str, Any]:
    """The protocol as a server speaks it: it receives requests, and sends replies and pushes."""
    shared = json.loads((SCHEMAS / "defs.json").read_text())["$defs"]
    frames = _frames()

    def move(ref: str) -> str:
        return "#/components/schemas/" + ref.removeprefix("../defs.json").removeprefix("#/$defs/")

    def messages(*names: str) -> list[dict[str, str]]:
        return [{"$ref": f"#/channels/chat/messages/{name}"} for name in names]

    channel = {"$ref": "#/channels/chat"}
    requests = {
        f"request.{t}": {
            "action": "receive",
            "channel": channel,
            "messages": messages(f"client.{t}"),
            "reply": {"channel": channel, "messages": messages(*(f"server.{one}" for one in replies), "server.err")},
        }
        for t, replies in REPLIES.items()
    }
    pushes = {f"push.{t}": {"action": "send", "channel": channel, "messages": messages(f"server.{t}")} for t in PUSHES}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "chatd.v1",
            "version": "1.0.0",
            "description": "Made from docs/schema by `make docs`. docs/protocol.md is the contract.",
        },
        "defaultContentType": "application/json",
        "servers": {"development": {"host": "127.0.0.1:8080", "pathname": "/ws", "protocol": "ws"}},
        "channels": {
            "chat": {
                "address": "/ws",
                "description": "WebSocket, subprotocol chatd.v1: each text message is one frame.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in frames},
            }
        },
        "operations": {**requests, **pushes},
        "components": {
            "messages": {
                name: {"name": name, "title": schema["title"], "payload": {"$ref": f"#/components/schemas/{name}"}}
                for name, schema in frames.items()
            },
            "schemas": {name: _draft_07(_moved(schema, move)) for name, schema in {**shared, **frames}.items()},
        },
    }


def _as_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


DOCUMENTS: Final[dict[Path, Callable[[], dict[str, Any]]]] = {
    ROOT / "chatd" / "conformance" / "frames.schema.json": bundle,
    ROOT / "docs" / "asyncapi.json": asyncapi,
}


def text_of(path: Path) -> str:
    """The document as it should stand there."""
    return _as_text(DOCUMENTS[path]())


def write() -> None:
    """Write all of them."""
    for path in DOCUMENTS:
        path.write_text(text_of(path))
