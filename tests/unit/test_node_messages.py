"""What nodes tell each other: everything that is sent comes out again, and nothing that is not sent
does any harm.
"""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from chatd import protocol
from chatd.wire import node_messages
from chatd.wire.node_messages import SEQ_MAX, VERSION, Codec, Entry, Receipt, TypingNotice, own

BOOT = "00112233445566ff"
codec = Codec(BOOT)
other = Codec("a" * 16)

numbers = st.integers(1, SEQ_MAX)
cids = st.uuids(version=4).map(str)
names = st.text(min_size=1, max_size=64).map(protocol.dumps)


@st.composite
def entries(draw: st.DrawFn) -> tuple[Entry, bytes]:
    conv, seq, ts = draw(numbers), draw(numbers), draw(numbers)
    kind = draw(st.integers(0, 2))
    frame = protocol.entry(
        conv, seq, ts, draw(names), draw(names), kind, None if kind == 0 else 1, draw(st.text(max_size=100)), None
    )
    counts = st.integers(0, 2**32 - 1)
    entry = Entry(conv, seq, ts, draw(counts), draw(counts), draw(st.integers(0, 1)), kind, draw(cids), frame)  # type: ignore[arg-type]
    return entry, codec.entry(*entry)


@given(entries())
def test_an_entry_comes_out_as_it_went_in(made: tuple[Entry, bytes]) -> None:
    entry, data = made
    assert codec.decode(data) == entry
    assert codec.mine(data)
    assert not other.mine(data)


@given(entries())
def test_an_entry_published_ahead_is_of_a_kind_that_older_nodes_pass_over(made: tuple[Entry, bytes]) -> None:
    """They would take its numbers of messages at their word."""
    ahead = made[0]._replace(na=0, nb=0)
    data = codec.entry(*ahead)
    assert codec.decode(data) == ahead
    assert data[1] == 4
    assert codec.entry(*ahead._replace(na=1))[1] == codec.entry(*ahead._replace(nb=1))[1] == 1


@given(numbers, st.integers(0, 1), numbers, numbers)
def test_a_receipt_comes_out_as_it_went_in(conv: int, side: int, one: int, two: int) -> None:
    read, delivered = sorted((one, two))
    assert codec.decode(codec.receipt(conv, side, delivered, read)) == Receipt(conv, side, delivered, read)  # type: ignore[arg-type]
    if read < delivered:
        assert codec.decode(codec.receipt(conv, side, read, delivered)) is None, "what is read has been delivered"


@given(numbers, st.integers(0, 1), names, names)
def test_typing_comes_out_as_it_went_in(conv: int, side: int, one: bytes, two: bytes) -> None:
    frame = protocol.typing(conv, one, two)
    assert codec.decode(codec.typing(conv, side, frame)) == TypingNotice(conv, side, frame)  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_garbage_is_nothing(data: bytes) -> None:
    codec.mine(data)
    assert codec.decode(data) is None or data[0] == VERSION


@given(entries(), st.data())
def test_a_damaged_entry_never_shows_another_place(made: tuple[Entry, bytes], data: st.DataObject) -> None:
    """Header and frame hold each other: a byte changed in either is seen, but in text, time,
    numbers of messages and cid, which prove nothing.
    """
    entry, sent = made
    at = data.draw(st.integers(0, len(sent) - 1))
    changed = codec.decode(sent[:at] + bytes([sent[at] ^ data.draw(st.integers(1, 255))]) + sent[at + 1 :])
    if isinstance(changed, Entry):
        assert (changed.conv, changed.seq, changed.ts) == (entry.conv, entry.seq, entry.ts)
    cut = codec.decode(sent[: data.draw(st.integers(0, len(sent) - 1))])
    assert cut is None or isinstance(cut, Entry)


@given(entries())
def test_a_newer_version_is_passed_over(made: tuple[Entry, bytes]) -> None:
    assert codec.decode(bytes([VERSION + 1]) + made[1][1:]) is None
    assert codec.decode(made[1][:1] + b"\x09" + made[1][2:]) is None, "so is a kind that we do not know"


@given(entries())
def test_what_is_of_another_log_is_seen(made: tuple[Entry, bytes]) -> None:
    moved = Codec(BOOT, "another epoch")
    assert moved.foreign(made[1])
    assert not codec.foreign(made[1])
    moved.of_log("")
    assert not moved.foreign(made[1])
    assert not codec.foreign(b"")


@given(entries())
def test_the_senders_own_devices_get_the_cid(made: tuple[Entry, bytes]) -> None:
    entry, _ = made
    frame = orjson.loads(own(entry.frame, entry.cid))
    assert frame.pop("cid") == entry.cid
    assert frame == orjson.loads(entry.frame)


@given(entries())
def test_the_parties_of_a_frame(made: tuple[Entry, bytes]) -> None:
    entry, _ = made
    parties = node_messages.parties(entry.frame, entry.side)
    frame = orjson.loads(entry.frame)
    if parties is not None:
        assert parties == ((frame["from"], frame["to"]) if entry.side == 0 else (frame["to"], frame["from"]))
    assert node_messages.parties(b"[]", 0) is None
    assert node_messages.parties(b'{"from":1,"to":"x"}', 0) is None
    assert node_messages.parties(b"nonsense", 1) is None
