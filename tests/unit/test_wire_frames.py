"""The frames that the server sends, as websockets' core reads them on the client's side."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, Protocol, Side

from chatd.wire.frames import CONTROL_BYTES_MAX, NO_STATUS, encode_close, encode_ping, encode_pong, encode_text


def client_reads(data: bytes) -> Frame:
    """What websockets' client core makes of it."""
    core = Protocol(Side.CLIENT, state=OPEN, max_size=None)
    core.receive_data(data)
    (event,) = core.events_received()
    assert isinstance(event, Frame)
    assert core.parser_exc is None
    return event


@given(
    st.one_of(
        st.text(max_size=300).map(str.encode),
        st.sampled_from([0, 125, 126, 127, 1_023, 1_024, 65_535, 65_536, 70_000]).map(lambda n: b"x" * n),
    )
)
def test_a_client_reads_the_text_that_was_encoded(payload: bytes) -> None:
    event = client_reads(encode_text(payload))
    assert (event.opcode, event.fin, bytes(event.data)) == (Opcode.TEXT, True, payload)


@pytest.mark.parametrize("data", [b"", b"12345678", b"x" * CONTROL_BYTES_MAX])
def test_a_client_reads_pings_and_pongs(data: bytes) -> None:
    for encode, opcode in ((encode_ping, Opcode.PING), (encode_pong, Opcode.PONG)):
        event = client_reads(encode(data))
        assert (event.opcode, bytes(event.data)) == (opcode, data)


def test_a_client_reads_why_it_is_closed() -> None:
    assert bytes(client_reads(encode_close(4008, "kept sending")).data) == b"\x0f\xa8kept sending"
    assert bytes(client_reads(encode_close(NO_STATUS)).data) == b""


def test_a_close_reason_is_cut_between_characters() -> None:
    payload = bytes(client_reads(encode_close(1000, "x" + "é" * 100)).data)
    assert payload == b"\x03\xe8" + ("x" + "é" * 61).encode()
    assert len(payload) == CONTROL_BYTES_MAX
