"""chatd's frame loop against websockets' sans-I/O core, over generated streams: the same messages,
pings, pongs and close codes.

Where the two differ on purpose, and how it is told apart here:

- The core reads a frame to its end before it finds fault with it; chatd fails at the header. Then
  the core is given zeros to the end of that one frame, and must find the same fault, or still wait
  for a frame longer than any (a control frame that claims gigabytes).
- The core counts a control frame towards the size of the message that it comes in the middle of;
  RFC 6455 does not. `Core` takes that bound off.
- Text that is not UTF-8 is found by the core's callers: here by `decode` of the whole message.
  Binary is refused by chatd (1003).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import CLOSED, OPEN, Protocol, Side

from chatd.wire import framing
from chatd.wire.frames import Failure, Fragment, PeerClose, Ping
from chatd.wire.framing import FrameReader
from tests.rfc6455 import BINARY, CLOSE, CONT, PING, PONG, TEXT, close, fragments, frame

if TYPE_CHECKING:
    from collections.abc import Iterable

Events: TypeAlias = list[tuple[object, ...]]
PAD_BYTES = 80_000  # ends any frame that a 16-bit length can claim


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(min(p, len(stream)) for p in places), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


def ours(pieces: Iterable[bytes], bytes_max: int) -> Events:
    reader = FrameReader(bytes_max)
    events: Events = []
    for piece in pieces:
        got = list(reader.feed(piece))
        while reader.more:
            got += reader.feed(b"")
        for event in got:
            if isinstance(event, Fragment):
                continue
            if isinstance(event, bytes):
                events.append(("text", event))
            elif isinstance(event, PeerClose):
                events.append(("close", event.code, event.reason))
            elif isinstance(event, Failure):
                events.append(("fail", event.code))
            else:
                events.append(("ping" if isinstance(event, Ping) else "pong", event.data))
    return events


class Core(Protocol):
    """The library's core, open, as a server."""

    bytes_max: int
    padding = False

    @property
    def max_message_size(self) -> int | None:
        return None if self.reader.buffer and self.reader.buffer[0] & 0x08 else self.bytes_max

    @max_message_size.setter
    def max_message_size(self, value: int | None) -> None:
        assert value is not None
        self.bytes_max = value

    def recv_frame(self, frame: Frame) -> None:
        super().recv_frame(frame)
        if self.padding:
            raise EOFError("the frame that the padding completed was taken")


def read_events(core: Core) -> Events:
    """Empty the core, as websockets' connections do on top of it."""
    events: Events = []
    message: bytes | None = None
    for event in core.events_received():
        assert isinstance(event, Frame)
        data = bytes(event.data)
        match event.opcode:
            case Opcode.PING | Opcode.PONG:
                events.append(("ping" if event.opcode is Opcode.PING else "pong", data))
            case Opcode.CLOSE:
                assert core.close_rcvd is not None
                events.append(("close", int(core.close_rcvd.code), core.close_rcvd.reason))
            case Opcode.BINARY:
                return [*events, ("fail", 1003)]
            case _:
                message = data if message is None else message + data
                if event.fin:
                    try:
                        message.decode()
                    except UnicodeDecodeError:
                        return [*events, ("fail", 1007)]
                    events.append(("text", message))
                    message = None
    if core.parser_exc is not None and core.close_sent is not None:
        events.append(("fail", int(core.close_sent.code)))
    return events


def theirs(stream: bytes, bytes_max: int, *, pad: bool = False) -> Events:
    core = Core(Side.SERVER, state=OPEN, max_size=bytes_max)
    core.receive_data(stream)
    if pad and core.state is OPEN:
        core.padding = True
        core.receive_data(bytes(PAD_BYTES))
    assert core.state is not CLOSED
    return read_events(core)


def check(stream: bytes, bytes_max: int) -> None:
    """The two agree on this stream, whole."""
    mine, other = ours([stream], bytes_max), theirs(stream, bytes_max)
    if mine == other:
        return
    assert mine[:-1] == other, "only an early end may be ahead of the core"
    assert mine[-1][0] == "fail"
    padded = theirs(stream, bytes_max, pad=True)
    if padded == other:  # still not at the end of its frame
        assert mine[-1] == ("fail", 1002)
        assert is_endless_control(stream)
    else:
        assert padded == mine


def is_endless_control(stream: bytes) -> bool:
    """The last frame of the stream is a control frame that claims more than the padding: its header
    is somewhere, in 64-bit form.
    """
    return any(
        stream[at] & 0x08
        and stream[at + 1] == 0xFF
        and int.from_bytes(stream[at + 2 : at + 10]) > PAD_BYTES - len(stream)
        for at in range(len(stream) - 9)
    )


# ---- streams -------------------------------------------------------------------------------------

masks = st.one_of(st.just(b"\0\0\0\0"), st.binary(min_size=4, max_size=4))
edges = st.sampled_from([0, 1, 2, 123, 124, 125, 126, 127, 128, 129, 130, 131, 999, 1000, 1001])
texts = st.one_of(
    st.text(max_size=60).map(str.encode),
    edges.map(lambda n: b"x" * n),
    edges.map(lambda n: ("é" * n).encode()[:n]),  # may end inside a character
    st.binary(max_size=20),
    st.sampled_from(
        [b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\xf0\x9f\x98\x80", b"\xf0\x9f\x98", b"\xef\xbf\xbf"]
    ),
)
forms = st.sampled_from([0, 0, 0, 16, 64])
controls = st.one_of(
    st.builds(frame, st.sampled_from([PING, PONG]), st.binary(max_size=125), mask=masks, form=forms),
    st.just(frame(PING)),
)
closes = st.one_of(
    st.just(close()),
    st.builds(close, st.integers(0, 65_535), st.binary(max_size=10)),
    st.builds(
        close, st.sampled_from([999, *range(1000, 1017), 2999, 3000, 3999, 4000, 4999, 5000]),
        st.sampled_from([b"", b"bye", "é".encode(), b"\xc3", b"r" * 123, b"r" * 124]),
    ),
    st.just(frame(CLOSE, b"\x03")),
)  # fmt: skip


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A whole text message, fragmented or not, with control frames in between."""
    payload = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    return fragments(payload, *cuts, between=tuple(draw(st.lists(controls, max_size=2))))


anything = st.builds(
    frame, st.integers(0, 15), texts, fin=st.booleans(), rsv=st.sampled_from([0, 0, 0, 0, 1, 2, 4, 7]),
    mask=st.one_of(masks, masks, st.none()), form=forms,
)  # fmt: skip
claims = st.builds(
    frame, st.sampled_from([TEXT, CONT, PING, BINARY]), texts, fin=st.booleans(), form=st.just(64),
    size=st.sampled_from([0, 5, 126, 2**16, 2**31, 2**63, 2**64 - 1]),
)  # fmt: skip
good = st.lists(
    st.one_of(messages(), controls, st.builds(frame, st.just(TEXT), texts, mask=masks, form=forms)), max_size=5
).map(b"".join)
streams = st.lists(st.one_of(messages(), messages(), controls, closes, anything, claims), max_size=6).map(b"".join)
limits = st.sampled_from([125, 130, 1000, 16_384])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A stream with bytes changed, put in and left out."""
    stream = bytearray(draw(st.one_of(good, streams)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(stream)))
        match draw(st.integers(0, 2)):
            case 0:
                stream[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                stream[at:at] = draw(st.binary(min_size=1, max_size=4))
            case _:
                del stream[at : at + draw(st.integers(1, 4))]
    return bytes(stream)


EACH_FORM = (
    frame(TEXT, b"hi")
    + frame(PING, b"ppp", form=16)
    + frame(TEXT, b"x" * 300)
    + frame(TEXT)
    + frame(TEXT, b"y" * 300, form=64)
    + frame(PONG, form=16)
    + fragments(b"z" * 400, 0, 299, between=(frame(PING, form=64),))
    + frame(TEXT, form=16)
    + close(1000)
)

# ---- claims --------------------------------------------------------------------------------------


@settings(max_examples=1_000, deadline=None)
@given(st.one_of(good, streams, mutated(), st.binary(max_size=40)), limits)
@example(frame(TEXT, b"a" * 120, fin=False) + frame(PING, b"p" * 100) + frame(CONT, b"b" * 5), 125)
@example(frame(TEXT, b"a", fin=False) + frame(TEXT, b"b" * 200), 125)
@example(frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 125)
@example(frame(TEXT, b"a", fin=False) + close(1000), 125)
@example(frame(BINARY, b"a"), 125)
@example(frame(BINARY, rsv=4, size=2**63, form=64), 125)
@example(frame(PING, b"a" * 126, rsv=1), 125)
def test_streams_give_what_the_core_gives(stream: bytes, bytes_max: int) -> None:
    check(stream, bytes_max)


@settings(max_examples=300, deadline=None)
@given(st.one_of(streams, mutated()), limits, st.data())
def test_every_beginning_of_a_stream_gives_what_the_core_gives(
    stream: bytes, bytes_max: int, data: st.DataObject
) -> None:
    for end in data.draw(st.lists(st.integers(0, len(stream)), min_size=1, max_size=8)):
        check(stream[:end], bytes_max)


@settings(max_examples=300, deadline=None)
@given(st.one_of(good, streams, mutated()), limits, st.lists(st.integers(0, 3_000), max_size=12))
def test_it_does_not_matter_where_a_stream_is_cut(stream: bytes, bytes_max: int, places: list[int]) -> None:
    whole = ours([stream], bytes_max)
    assert ours(cut(stream, places), bytes_max) == whole
    assert ours((stream[n : n + 1] for n in range(len(stream))), bytes_max) == whole


@settings(max_examples=60, deadline=None)
@given(st.one_of(messages(), st.tuples(messages(), closes).map(b"".join), anything), limits)
@example(EACH_FORM, 1_000)
def test_cut_at_every_place(stream: bytes, bytes_max: int) -> None:
    whole = ours([stream], bytes_max)
    for place in range(len(stream) + 1):
        assert ours((stream[:place], stream[place:]), bytes_max) == whole


@pytest.mark.parametrize("before", [b"", frame(TEXT, b"begun", fin=False)], ids=["fresh", "in a message"])
@pytest.mark.parametrize("masked", [0x80, 0], ids=["masked", "unmasked"])
def test_every_first_byte(before: bytes, masked: int) -> None:
    for first in range(256):
        for size in (0, 1, 2, 7, 125):
            check(before + bytes((first, masked | size)) + b"\0\0\0\0" + b"\x03\xe8hello"[:size].ljust(size, b"x"), 130)
        for size in (2, 125, 126, 131):
            check(
                before
                + bytes((first, masked | 126))
                + size.to_bytes(2)
                + b"\0\0\0\0"
                + b"\x03\xe8"
                + b"x" * (size - 2),
                130,
            )
            check(
                before
                + bytes((first, masked | 127))
                + size.to_bytes(8)
                + b"\0\0\0\0"
                + b"\x03\xe8"
                + b"x" * (size - 2),
                130,
            )


def test_every_close_code() -> None:
    for code in (*range(5_100), *range(5_100, 65_536, 97)):
        check(close(code, b"why"), 125)


@pytest.mark.parametrize("size", [65_534, 65_535, 65_536, 65_537, 70_000, 70_001])
@pytest.mark.parametrize("form", [0, 64])
def test_lengths_around_16_bits(size: int, form: int) -> None:
    for stream in (frame(TEXT, b"x" * size, form=form), fragments(b"y" * size, size - 1), fragments(b"z" * size, 1)):
        check(stream, 70_000)
        assert ours(cut(stream, [1, 3, 9, 13, 14, size]), 70_000) == ours([stream], 70_000)


@pytest.mark.parametrize(
    ("name", "value", "stream"),
    [
        ("_is_utf8", lambda payload: True, frame(TEXT, b"\xff")),
        ("_is_utf8", lambda payload: True, fragments("é".encode(), 1)[:-1] + b"\0"),
        ("_PEER_CODES", frozenset((1005,)), close(1005)),
        ("_OPCODES", frozenset(range(16)), frame(3)),
        ("CONTROL_BYTES_MAX", 200, frame(PING, b"p" * 126)),
        ("apply_mask", lambda data, mask: data, frame(TEXT, b"hi")),
    ],
)
def test_the_check_sees_a_seeded_fault(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object, stream: bytes
) -> None:
    check(stream, 1_000)
    monkeypatch.setattr(framing, name, value)
    with pytest.raises(AssertionError):
        check(stream, 1_000)
