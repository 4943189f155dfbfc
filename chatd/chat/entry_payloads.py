"""The payload of an entry for one of its two users, made of what this node has of it. Pure.

    core/batch.py `Item`            written by this node         of_item
    wire/node_messages.py `Entry`   published by another node    of_remote
    protocol.py `Stored`            a row of the log             of_stored

The user who made the entry (`own`) gets its cid as well. An entry that was just delivered has the
conversation's head as its seq.
"""

from __future__ import annotations

from chatd import protocol
from chatd.core.batch import Item
from chatd.core.conversation import Conversation
from chatd.ids import UserId
from chatd.protocol import Stored
from chatd.wire import node_messages
from chatd.wire.frames import encode_text


def of_item(conv: Conversation, item: Item, own: bool) -> bytes:
    from_json, to_json = conv.names(item.side)
    cid = item.cid if own else None
    return protocol.entry(conv.id, conv.head, conv.ts, from_json, to_json, item.kind, item.ref, item.body, cid)


def of_remote(conv: Conversation, e: node_messages.Entry, own: bool) -> bytes:
    return node_messages.own(e.frame, e.cid) if own else e.frame


def of_stored(conv: Conversation, e: Stored, own: bool) -> bytes:
    return protocol.stored_entry(protocol.entry_head(conv.id), e, *conv.names(e.side), own)


def stored_frame(conv: Conversation, e: Stored, reader: UserId) -> bytes:
    """An entry of the log as a push to one of the two, in its WebSocket frame."""
    return encode_text(of_stored(conv, e, conv.side(reader) == e.side))


def stored_item(conv: Conversation, e: Stored, reader: UserId) -> bytes:
    """An entry of the log as an item of history."""
    return protocol.stored_entry(b"{", e, *conv.names(e.side), conv.side(reader) == e.side)
