"""The frame loop by hand-written examples; generated ones are in `tests/oracles`, where websockets'
core is the judge.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc

import pytest

from chatd.wire.frames import NO_STATUS, Failure, Fragment, PeerClose, Ping, Pong
from chatd.wire.framing import FEED_FRAMES_MAX, FrameReader
from tests.rfc6455 import BINARY, CLOSE, CONT, PING, PONG, TEXT, close, fragments, frame

MAX = 16_384


def read(*pieces: bytes, bytes_max: int = MAX) -> list[object]:
    """All events but those of fragments, which `test_every_frame_is_an_event` counts."""
    reader = FrameReader(bytes_max)
    return [event for piece in pieces for event in feed(reader, piece) if event != Fragment()]


def feed(reader: FrameReader, piece: bytes) -> list[object]:
    """Feed all of it, in as many calls as it takes."""
    events: list[object] = list(reader.feed(piece))
    while reader.more:
        more = reader.feed(b"")
        assert 0 < len(more) <= FEED_FRAMES_MAX
        events += more
    return events


# ---- what is taken -------------------------------------------------------------------------------


def test_the_example_of_the_rfc() -> None:
    assert read(bytes.fromhex("818537fa213d7f9f4d5158")) == [b"Hello"]  # RFC 6455 5.7


def test_several_messages_in_one_read_come_in_order() -> None:
    assert read(frame(TEXT, b"one") + frame(TEXT, b"") + frame(TEXT, b"x" * 200)) == [b"one", b"", b"x" * 200]


def test_messages_are_bytes_also_when_they_came_in_pieces() -> None:
    stream = frame(TEXT, b"x" * 200) + fragments(b"abcdef", 2, 4)
    for size in (1, 2, 7, 100, len(stream)):
        events = read(*(stream[n : n + size] for n in range(0, len(stream), size)))
        assert events == [b"x" * 200, b"abcdef"]
        assert {type(event) for event in events} == {bytes}


def test_control_frames_come_out_where_they_stand_inside_a_message() -> None:
    stream = (
        frame(TEXT, b"a", fin=False)
        + frame(PING, b"p")
        + frame(CONT, b"b", fin=False)
        + frame(PONG, b"q")
        + frame(CONT, b"c")
    )
    assert read(stream) == [Ping(b"p"), Pong(b"q"), b"abc"]


def test_every_frame_is_an_event() -> None:
    stream = frame(PONG) * 3 + fragments(b"abc", 1, 2, between=(frame(PING),)) + frame(TEXT, b"x") + close(1000)
    assert [type(event).__name__ for event in feed(FrameReader(MAX), stream)] == [
        "Pong", "Pong", "Pong", "Fragment", "Ping", "Fragment", "Ping", "bytes", "bytes", "PeerClose",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "one", [frame(PONG), frame(TEXT, b"hello"), frame(TEXT, b"x" * 300), frame(CONT, b"x", fin=False)]
)
@pytest.mark.parametrize("n", [FEED_FRAMES_MAX - 1, FEED_FRAMES_MAX, FEED_FRAMES_MAX + 1, 5 * FEED_FRAMES_MAX + 1])
def test_a_call_reads_so_many_frames_and_keeps_the_rest(one: bytes, n: int) -> None:
    reader = FrameReader(1 << 20)
    if one[0] == CONT:
        reader.feed(frame(TEXT, fin=False))
    cut = len(one) // 2  # the last one is not whole
    events = list(reader.feed(one * n + one[:cut]))
    assert len(events) == min(n, FEED_FRAMES_MAX)
    while reader.more:
        events += reader.feed(b"")
    assert len(events) == n
    assert len(reader.feed(one[cut:])) == 1


def test_a_character_may_be_cut_by_fragments() -> None:
    for place in range(1, 4):
        assert read(fragments("😀".encode(), place)) == ["😀".encode()]


def test_a_message_of_one_byte_fragments_is_read() -> None:
    assert read(fragments(b"x" * MAX, *range(1, MAX))) == [b"x" * MAX]


def test_a_control_frame_does_not_count_towards_the_message_around_it() -> None:
    stream = frame(TEXT, b"x" * 125, fin=False) + frame(PING, b"p" * 125) + frame(CONT)
    assert read(stream, bytes_max=125) == [Ping(b"p" * 125), b"x" * 125]


def test_the_peers_close() -> None:
    assert read(close(1000, b"bye")) == [PeerClose(1000, "bye")]
    assert read(close()) == [PeerClose(NO_STATUS, "")]
    assert read(close(4321, "é".encode())) == [PeerClose(4321, "é")]


# ---- what ends the connection --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (frame(TEXT, b"x", mask=None), 1002),
        (frame(PING, mask=None), 1002),
        (frame(TEXT, b"x", rsv=4), 1002),  # compression that nobody negotiated
        (frame(TEXT, b"x", rsv=2), 1002),
        (frame(TEXT, b"x", rsv=1), 1002),
        *((frame(opcode), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
        (frame(PING, b"x" * 126), 1002),
        (frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
        (frame(PING, b"x", fin=False), 1002),
        (frame(CONT, b"x"), 1002),
        (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
        (frame(TEXT, b"a", fin=False) + close(1000), 1002),
        (frame(TEXT, b"a", fin=False) + close(), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        *((close(code), 1002) for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535)),
        (close(1000, b"\xff"), 1007),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),  # a lone surrogate
        (frame(TEXT, b"\xc0\x80"), 1007),  # NUL in two bytes
        (frame(TEXT, "é".encode()[:1]), 1007),
        (fragments("é".encode()[:1], 0), 1007),
        (frame(BINARY, b"x"), 1003),
        (frame(BINARY, b"x", fin=False), 1003),
        (frame(TEXT, b"x" * (MAX + 1)), 1009),
        (fragments(b"x" * (MAX + 1), 1), 1009),
        (fragments(b"x" * (MAX + 1), MAX), 1009),
    ],
)
def test_a_broken_rule_ends_with_its_code_and_nothing_more_is_read(stream: bytes, code: int) -> None:
    reader = FrameReader(MAX)
    assert reader.feed(frame(TEXT, b"before")) == [b"before"]
    events = [event for event in feed(reader, stream + frame(TEXT, b"after")) if event != Fragment()]
    assert len(events) == 1
    assert isinstance(events[0], Failure)
    assert events[0].code == code
    assert not reader.feed(frame(TEXT, b"after"))


@pytest.mark.parametrize("size", [MAX + 1, 65_535, 65_536, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_message_too_big_is_refused_by_its_header(size: int) -> None:
    header = frame(TEXT, size=size)[: 4 if size < 65_536 else 10]
    (event,) = read(*(header[n : n + 1] for n in range(len(header))))
    assert isinstance(event, Failure)
    assert event.code == 1009


def test_the_fragment_that_makes_a_message_too_big_is_refused_by_its_header() -> None:
    reader = FrameReader(MAX)
    assert reader.feed(frame(TEXT, b"x" * MAX, fin=False)) == [Fragment()]
    (event,) = reader.feed(frame(CONT, size=1)[:2])
    assert isinstance(event, Failure)
    assert event.code == 1009


def test_empty_fragments_end_somewhere() -> None:
    reader = FrameReader(125)
    assert reader.feed(frame(TEXT, fin=False)) == [Fragment()]
    events = [event for _ in range(126) for event in reader.feed(frame(CONT, fin=False))]
    assert [event.code for event in events if isinstance(event, Failure)] == [1009]


def test_nothing_is_read_after_the_peers_close() -> None:
    reader = FrameReader(MAX)
    assert reader.feed(close(1000) + frame(TEXT, b"after")) == [PeerClose(1000, "")]
    assert not reader.feed(frame(TEXT, b"after"))


# ---- memory --------------------------------------------------------------------------------------


def buffers(reader: FrameReader) -> list[object]:
    return [o for o in gc.get_referents(reader) if isinstance(o, bytes | bytearray)]


def test_an_idle_reader_holds_no_buffer() -> None:
    reader = FrameReader(MAX)
    message = frame(TEXT, b"x" * 500)
    for stream in (message, fragments(b"y" * 500, 100, 200)):
        reader.feed(stream[:50])
        assert buffers(reader)
        reader.feed(stream[50:])
        assert not buffers(reader)
    reader.feed(message[:50])
    reader.feed(message[50:] + frame(BINARY))
    assert not buffers(reader)


def test_an_idle_reader_takes_some_hundred_bytes() -> None:
    assert not hasattr(FrameReader(MAX), "__dict__")
    stream = frame(TEXT, b"x" * 500)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        readers = [FrameReader(MAX) for _ in range(1_000)]
        for reader in readers:
            reader.feed(stream[:50])
            reader.feed(stream[50:])
        each = (tracemalloc.get_traced_memory()[0] - before) / len(readers)
    finally:
        tracemalloc.stop()
    assert each < 200


def test_a_partial_frame_is_kept_within_the_bound() -> None:
    reader = FrameReader(MAX)
    reader.feed(frame(TEXT, b"x" * MAX)[:-1])
    assert sum(map(sys.getsizeof, buffers(reader))) < MAX * 1.2
    reader = FrameReader(MAX)
    reader.feed(frame(TEXT, b"x" * (MAX // 2), fin=False) + frame(CONT, b"x" * (MAX // 2))[:-1])
    assert sum(map(sys.getsizeof, buffers(reader))) < MAX * 1.2
