"""docs/frames.md: each frame of the protocol as a table of its keys, made from `docs/schema/`.

What a key means is said once: in the schema, else in a table of docs/protocol.md (sections 2 and 3),
else in `MEANINGS` here. What no table can say (which keys exclude each other) is in `NOTES`; a
frame whose schema has such a rule and no note is an error.

    page()      the whole page

`make docs` writes it, and tests/tidy/test_generated_pages.py holds it as current.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).parents[2] / "docs"
SCHEMAS: Final = DOCS / "schema"
Schema = dict[str, Any]
INTEGER_MAX: Final = 2**53 - 1
PROSE_COLUMNS: Final = 118

# How a shared definition reads as a type, with what the number counts; and its limits, where the
# schema has them as a pattern or cannot say them.
TYPES: Final = {
    "id": "integer", "c": "string", "user": "string, a user id", "device": "string", "seq": "integer, a seq",
    "cursor": "integer, a seq or 0", "ms": "integer, ms", "cid": "string, a UUID", "body": "string",
    "token": "string, a JWT", "limit": "integer, messages", "conversation": "[conversation](#conversation)",
    "entry": "[entry](#entry)", "item": "[item](#item)", "status": "[status](#status)",
    "status_item": "[status](#status)",
}  # fmt: skip
LIMITS: Final = {
    "c": "",
    "user": "1-64 characters, [section 2](protocol.md#2-frames)",
    "device": "1-64 characters of `A-Z a-z 0-9 . _ : -`",
    "cid": "36 characters",
    "body": "1-2,048 bytes of UTF-8; no control characters but newline and tab",
}

# `frame.key` or `key`, for what neither a schema nor docs/protocol.md has in a table.
MEANINGS: Final = {
    "hello.v": "version of the protocol",
    "after": "entries newer than this seq; 0 = from the first one that is kept",
    "before": "entries older than this seq; without `before` and `after` the newest ones",
    "ack.seq": "this device has everything up to it",
    "read.seq": "the user has seen everything up to it",
    "skip.cid": "the entry that is given up; others wait behind it no longer",
    "err.cid": "with `blocked`: the entry that is waited for",
    "conversations.cursor": "from the answer before; without it the first page",
    "ok_conversations.cursor": "for the next page; absent on the last one",
    "conversations": "those that are listed",
    "ok_conversations.conversations": "the page, the latest entry first",
    "device": "the device that said hello",
    "entries": "an unbroken run of seqs, rising",
    "epoch": "the name of this log; keep it with cursors and mark",
    "edit.body": "the new text",
    "send.body": "the text",
    "entry.edited": "time of the last edit, since 1970 UTC",
    "entry.deleted": "time of the deletion, since 1970 UTC",
    "err.code": "stable name, see [section 9](protocol.md#9-errors)",
    "err.retry_ms": "when to try again",
    "ok_ack.delivered": "your cursor as it stands now",
    "ok_ack.read": "your cursor as it stands now",
    "pong.ts": "now, by the database's clock, since 1970 UTC",
    "welcome.ts": "now, by the database's clock, since 1970 UTC",
    "exp": "when the token ends, with the server's leeway; since 1970 UTC",
    "features": "extensions that client and server both know",
    "field": "the key that was wrong",
    "heartbeat_ms": "who is silent for so long is cut off",
    "notice.kind": "`drain`: this server goes away",
    "limit": "how many messages the page has at most; 50 if absent",
    "limits": "what this server allows: [limits](#limits)",
    "more": "further pages follow",
    "ok_history.more": "there are further entries in that direction",
    "presence": "of those in `watch`",
    "presence.state": "`away`: this device is idle",
    "since": "the mark, on the last page alone",
    "token": "a new token of the same user",
    "user": "whose session this is: the `sub` of the token",
    "users": "whose presence this session gets; replaces the list before",
    "v": "version of the protocol",
    "status.user": "whose presence it is",
    "status.state": "`hidden`: not both have sent yet",
    "status.v": "the higher one is the newer one",
    "status.seen": "when the user was last here, with `offline` alone; since 1970 UTC",
    "conversation.delivered": "your own cursor",
    "conversation.read": "your own cursor",
    "conversation.peer_delivered": "the peer's cursor; 0 while not `open`",
    "conversation.peer_read": "the peer's cursor; 0 while not `open`",
    "conversation.ts": "of the entry at `head`, since 1970 UTC",
    "receipt.delivered": "the cursor of `from`",
    "receipt.read": "the cursor of `from`",
    "limits.frame_bytes": "bytes of a frame",
    "limits.body_bytes": "bytes of a body in UTF-8",
    "limits.messages": "sends, edits and deletes of a user in `per_ms`",
    "limits.per_ms": "the time for `messages`",
    "limits.watch": "users in a `watch`",
    "limits.history": "messages in a page of history",
    "limits.edit_ms": "how old a message may be to be edited",
    "limits.resync": "entries of a conversation that a resync sends; beyond, `page` is true",
}  # fmt: skip
UNITS: Final = {
    "frame_bytes": "bytes", "body_bytes": "bytes", "messages": "entries", "watch": "users", "history": "messages",
    "resync": "entries", "unread": "messages",
}  # fmt: skip

WHERE: Final = "Exactly one of `c` and `to`; `null` counts as absent."
NOTES: Final = {
    "ack": WHERE, "read": WHERE, "send": WHERE, "skip": WHERE, "typing": WHERE,
    "delete": f"{WHERE} At least one of `ref` and `refcid`.",
    "edit": f"{WHERE} At least one of `ref` and `refcid`.",
    "history": f"{WHERE} At most one of `before` and `after`.",
    "server.entry": "With the keys of an [entry](#entry).",
    "server.presence": "The keys of a [status](#status).",
    "entry": "A message has a `body`; it is null with `deleted` and `rev` where the message was deleted. `edited` goes "
             "with `rev`. An edit has `ref` and `body`, a delete `ref`.",
    "welcome": "The first page has all keys, later ones `t`, `id`, `conversations` and `more` alone; `since` is on "
               "the last page.",
    "server.notice": "A `drain` has `retry_ms`.",
    "conversation": "`page` and `reset` exclude each other; both are absent as a rule.",
    "status": "`seen` comes with `offline` alone.",
}  # fmt: skip
RULES: Final = ("allOf", "anyOf", "oneOf", "not", "if", "dependentRequired")

SECTIONS: Final = {
    "hello": "3-hello-and-welcome", "welcome": "3-hello-and-welcome", "entry": "4-entries", "send": "5-sending",
    "edit": "5-sending", "delete": "5-sending", "skip": "5-sending", "ok_send": "5-sending",
    "ack": "6-cursors-history-lists", "read": "6-cursors-history-lists", "receipt": "6-cursors-history-lists",
    "ok_ack": "6-cursors-history-lists", "history": "6-cursors-history-lists",
    "ok_history": "6-cursors-history-lists", "conversations": "6-cursors-history-lists",
    "ok_conversations": "6-cursors-history-lists",
    "watch": "7-presence-and-typing", "presence": "7-presence-and-typing", "typing": "7-presence-and-typing",
    "ok_watch": "7-presence-and-typing", "refresh": "8-the-rest", "ok_refresh": "8-the-rest", "ping": "8-the-rest",
    "pong": "8-the-rest", "notice": "8-the-rest", "err": "9-errors", "ok": "2-frames",
}  # fmt: skip

HEAD: Final = """\
# Frames

<!-- Made from docs/schema/ by `make docs`. -->

Each frame of [`chatd.v1`](protocol.md) and its keys, made from the JSON schemas in `docs/schema/` (JSON Schema
2020-12), which [begin here](schema/defs.json). What the frames do is in the [protocol](protocol.md).

- Each frame has `t`, its type, and each request and reply has `id`, the number of the request (1 or more). The tables
  have the other keys.
- Integers are at most 2^53 - 1 and are written without fraction or exponent.
- Other keys than these are allowed everywhere and to be ignored.
"""


def _read(path: Path) -> Schema:
    schema: Schema = json.loads(path.read_text())
    return schema


def _of_protocol() -> dict[str, str]:
    """`key` or `hello.key`: what the tables of sections 2 and 3 of docs/protocol.md say."""
    text = (DOCS / "protocol.md").read_text()
    _, _, frames = text.partition("\n## 2.")
    frames, _, hello = frames.partition("\n## 3.")
    found: dict[str, str] = {}
    for keys, meaning in re.findall(r"^\| (`[^|]+) \| [^|]+ \| (.+) \|$", frames, re.MULTILINE):
        found |= zip(re.findall(r"`(\w+)`", keys), _parts(keys, meaning), strict=True)
    for key, meaning in re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", hello.partition("\n## 4.")[0], re.MULTILINE):
        found[f"hello.{key}"] = meaning
    return found


def _parts(keys: str, meaning: str) -> list[str]:
    """A row for several keys tells what each means in order (by `;` or `,`), or one thing of all."""
    count = keys.count("`") // 2
    for mark in ("; ", ", "):
        if count > 1 and len(parts := meaning.split(mark)) == count:
            return parts
    return [meaning] * count


class Page:
    def __init__(self) -> None:
        self.defs: Schema = _read(SCHEMAS / "defs.json")["$defs"]
        self.protocol = _of_protocol()

    def target(self, node: Schema) -> tuple[str, Schema]:
        """The name of the shared definition that a node is, if it is one; and its schema."""
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            return name, self.defs[name]
        return "", node

    def type(self, node: Schema, key: str = "") -> str:
        name, schema = self.target(node)
        if name in ("ms", "cursor") and key in UNITS:
            return f"integer, {UNITS[key]}"
        if name in TYPES:
            return TYPES[name]
        if "anyOf" in schema:
            some = [one for one in schema["anyOf"] if one != {"type": "null"}]
            return ", or ".join([self.type(one) for one in some] + ["null"] * (len(some) < len(schema["anyOf"])))
        if "const" in schema:
            return f"`{json.dumps(schema['const'])}`"
        if "enum" in schema:
            return " ".join(f"`{one}`" for one in schema["enum"])
        if schema["type"] == "array":
            return f"array of {self.type(schema['items'])}"
        if "additionalProperties" in schema:
            return f"object: from `c` to {self.type(schema['additionalProperties'])}"
        return str(schema["type"])

    def limits(self, node: Schema) -> str:
        name, schema = self.target(node)
        if name in LIMITS:
            return LIMITS[name]
        if "anyOf" in schema:
            return self.limits(next(one for one in schema["anyOf"] if one != {"type": "null"}))
        for least, most, what in (
            ("minimum", "maximum", ""),
            ("minLength", "maxLength", " characters"),
            ("", "maxItems", " items at most"),
            ("", "maxProperties", " at most"),
        ):
            if schema.get(most) == INTEGER_MAX:
                return f"{schema[least]} or more"
            if most in schema:
                return (f"{schema[least]}-" if least else "") + f"{schema[most]:,}{what}"
            if least in schema:
                return f"{schema[least]} or more{what}"
        return ""

    def meaning(self, frame: str, key: str, node: Schema) -> str:
        _, schema = self.target(node)
        own = node.get("description") or ("" if "$ref" in node else schema.get("description"))
        for text in (self.protocol.get(f"{frame}.{key}"), MEANINGS.get(f"{frame}.{key}"), own, self.protocol.get(key)):
            if text is not None and text != "":
                return str(text)
        return MEANINGS.get(key) or str(schema.get("description", ""))

    def rows(self, frame: str, schema: Schema) -> Iterator[str]:
        properties: Schema = dict(schema.get("properties", {}))
        if {"$ref": "../defs.json#/$defs/where"} in schema.get("allOf", ()):
            t, i = properties.pop("t"), properties.pop("id")
            where = {"c": {"$ref": "#/$defs/c"}, "to": {"$ref": "#/$defs/user"}}
            properties = {"t": t, "id": i, **where, **properties}
        for key, node in properties.items():
            if node is False:
                continue
            if key in ("t", "id") and not node.get("description"):
                continue
            required = "yes" if key in schema.get("required", ()) else ""
            text = self.meaning(frame, key, node)
            assert text, f"what {frame}.{key} means is said nowhere: a row of MEANINGS"
            yield f"| `{key}` | {self.type(node, key)} | {required} | {self.limits(node)} | {text} |"

    def section(self, frame: str, schema: Schema, title: str, note_key: str = "") -> str:
        note = NOTES.get(note_key or frame, "")
        assert note or not any(rule in schema for rule in RULES), f"{frame} has a rule: a row of NOTES"
        about = schema.get("title", "").partition(": ")[2] if ": " in schema.get("title", "") else ""
        about = about if title != about and not about.startswith("ok to") else ""
        lines = [f"### {title}", ""]
        if frame in SECTIONS:
            see = f"[section {SECTIONS[frame][0]}](protocol.md#{SECTIONS[frame]})"
            lines += [f"{about[:1].upper()}{about[1:]}: {see}." if about else f"See {see}.", ""]
        elif schema.get("description"):
            lines += [f"{schema['description'][:1].upper()}{schema['description'][1:]}.", ""]
        rows = list(self.rows(frame, schema))
        lines += ["| key | type | required | limits | meaning |", "|---|---|---|---|---|", *rows, ""] if rows else []
        lines += ["No other keys.", ""] if not rows and not note else []
        return "\n".join([*lines, *([textwrap.fill(note, PROSE_COLUMNS), ""] if note else [])])

    def parts(self) -> Iterator[str]:
        yield HEAD
        yield "## Requests\n\nA client sends them. Each has one reply with the same `id`. `t` is the heading.\n"
        for path in sorted((SCHEMAS / "client").glob("*.json")):
            yield self.section(path.stem, _read(path), path.stem)
        server = {path.stem: _read(path) for path in sorted((SCHEMAS / "server").glob("*.json"))}
        pushes = {name: schema for name, schema in server.items() if "push" in schema["title"]}
        yield "## Replies\n\nThe server's answers to requests, with their `id`. `t` is the first word of the heading.\n"
        for name, schema in server.items():
            if name not in pushes:
                after = schema["title"].partition(": ")[2]
                yield self.section(name, schema, after if after.startswith("ok to") else name)
        yield "## Pushes\n\nThe server sends them by itself. They have no `id`. `t` is the first word of the heading.\n"
        for name, schema in pushes.items():
            yield self.section(name, schema, f"{name} (push)", f"server.{name}")
        yield "## Parts of frames\n"
        for name in ("conversation", "entry", "status"):
            yield self.section(name, self.defs[name], name, name)
        yield "### item\n\nAn item of history: an [entry](#entry) without `t` and `c`.\n"
        yield self.section("limits", server["welcome"]["properties"]["limits"], "limits")


def page() -> str:
    return "\n".join(Page().parts()).rstrip() + "\n"
