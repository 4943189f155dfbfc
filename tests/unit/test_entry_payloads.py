"""An entry reads the same for a client, wherever this node has it from."""

from __future__ import annotations

from typing import Final, cast

import orjson
import pytest

from chatd import protocol
from chatd.chat import entry_payloads
from chatd.core.batch import Item
from chatd.core.conversation import Conversation
from chatd.core.session import Session
from chatd.ids import Cid, ConvId, UserId
from chatd.protocol import MESSAGE, Stored
from chatd.wire.node_messages import Codec, Entry

ALICE, BOB = UserId("alice"), UserId("bob")
CID: Final = Cid("0b5f5c0e-7a34-4f5e-9d4c-3f1f6f0a9b11")
STORED: Final = Stored(7, 1_000, 1, MESSAGE, CID, "hi", None, None, None, 3, 4)


def at_seven() -> Conversation:
    conv = Conversation(ConvId(5), ALICE, BOB)
    conv.head, conv.ts = 7, 1_000
    return conv


@pytest.mark.parametrize("own", [False, True])
def test_all_three_sources_make_one_payload(own: bool) -> None:
    conv = at_seven()
    item = Item(cast("Session", None), 1, conv, ALICE, 1, CID, MESSAGE, "hi", None, 0)
    public = entry_payloads.of_item(conv, item, False)
    told = Codec("00" * 8, "e").entry(conv.id, 7, 1_000, 3, 4, 1, MESSAGE, CID, public)
    entry = Codec.decode(told)
    assert isinstance(entry, Entry)
    made = [
        entry_payloads.of_item(conv, item, own),
        entry_payloads.of_remote(conv, entry, own),
        entry_payloads.of_stored(conv, STORED, own),
    ]
    facts = [orjson.loads(payload) for payload in made]
    assert facts[0] == facts[1] == facts[2]
    assert facts[0].get("cid") == (CID if own else None)


def test_only_who_made_an_entry_gets_its_cid() -> None:
    conv = at_seven()
    for reader, cid in ((BOB, CID), (ALICE, None)):
        assert orjson.loads(entry_payloads.stored_item(conv, STORED, reader)).get("cid") == cid
        frame = entry_payloads.stored_frame(conv, STORED, reader)
        assert orjson.loads(frame[frame.index(b"{") :]).get("cid") == cid


def test_an_item_of_history_names_no_conversation() -> None:
    item = orjson.loads(entry_payloads.stored_item(at_seven(), STORED, BOB))
    assert not {"t", "c"} & item.keys()
    assert (item["seq"], item["from"], item["to"], item["body"]) == (7, "bob", "alice", "hi")
    assert protocol.KINDS[MESSAGE].decode() == item["kind"]
