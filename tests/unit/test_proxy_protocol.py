"""PROXY headers, versions 1 and 2: whole, in pieces, and hostile."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.wire.proxy_protocol import SIGNATURE_V2, V1_BYTES_MAX, V2_BYTES_MAX, Malformed, Opening, ProxyReader

REST = b"GET /ws HTTP/1.1\r\n"


def v2(command: int, family: int, payload: bytes) -> bytes:
    return SIGNATURE_V2 + bytes((command, family)) + len(payload).to_bytes(2) + payload


def addresses(source: str, destination: str = "10.0.0.1") -> bytes:
    return ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed + bytes(4)


SOURCE_V6 = addresses("2001:db8::1", "2001:db8::2")
HEADERS = [
    (b"PROXY TCP4 203.0.113.7 10.0.0.1 51234 8080\r\n", "203.0.113.7"),
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n", "2001:db8::1"),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    (v2(0x21, 0x11, addresses("203.0.113.7")), "203.0.113.7"),
    (v2(0x21, 0x11, addresses("203.0.113.7") + b"\x04\x00\x01x"), "203.0.113.7"),
    (v2(0x21, 0x21, SOURCE_V6), "2001:db8::1"),
    (v2(0x20, 0x00, b""), None),
    (v2(0x20, 0x99, b"whatever"), None),
    (v2(0x21, 0x00, b"tlv"), None),
    (v2(0x21, 0x31, bytes(216)), None),
]


@pytest.mark.parametrize(("header", "address"), HEADERS)
def test_a_header_is_read_the_same_in_pieces_and_at_once(header: bytes, address: str | None) -> None:
    assert ProxyReader().feed(header + REST) == Opening(address, REST)
    reader = ProxyReader()
    for n in range(len(header) - 1):
        assert reader.feed(header[n : n + 1]) is None
    assert reader.feed(header[-1:]) == Opening(address, b"")


@pytest.mark.parametrize(
    "data",
    [
        REST,
        b"\r\n\r\n\x00\r\nQUIT!",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 51234\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 51234 65536\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 -1 1\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 1 2 3\r\n",
        b"PROXY TCP4  203.0.113.7 10.0.0.1 1 2\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        b"PROXY TCP6 203.0.113.7 10.0.0.1 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n",
        b"PROXY TCP4 localhost 10.0.0.1 1 2\r\n",
        b"PROXY UDP4 203.0.113.7 10.0.0.1 1 2\r\n",
        b"PROXY \xff\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 \xc2\xb2 1\r\n",
        b"PROXY " + b"x" * (V1_BYTES_MAX - 6),
        v2(0x11, 0x11, addresses("203.0.113.7")),
        v2(0x22, 0x11, addresses("203.0.113.7")),
        v2(0x21, 0x12, addresses("203.0.113.7")),
        v2(0x21, 0x11, addresses("203.0.113.7")[:-1]),
        v2(0x21, 0x21, addresses("203.0.113.7")),
        v2(0x20, 0x00, bytes(V2_BYTES_MAX - 15)),
    ],
)
def test_what_is_no_header_ends_it_at_once(data: bytes) -> None:
    with pytest.raises(Malformed):
        ProxyReader().feed(data)


def test_the_longest_headers_are_read() -> None:
    line = b"PROXY UNKNOWN ".ljust(V1_BYTES_MAX - 2, b"x") + b"\r\n"
    assert ProxyReader().feed(line) == Opening(None, b"")
    assert ProxyReader().feed(v2(0x20, 0x00, bytes(V2_BYTES_MAX - 16))) == Opening(None, b"")


starts = st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE_V2, SIGNATURE_V2 + b"\x21\x11", SIGNATURE_V2[:7]])


@given(starts, st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=8))
def test_hostile_bytes_end_bounded_and_the_same_however_they_are_cut(
    start: bytes, noise: bytes, cuts: list[int]
) -> None:
    def run(pieces: list[bytes]) -> object:
        reader = ProxyReader()
        for n, piece in enumerate(pieces):
            try:
                opening = reader.feed(piece)
            except Malformed as e:
                return str(e)
            if opening is not None:
                return opening.address, opening.rest + b"".join(pieces[n + 1 :])
        return None

    data = start + noise
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    whole = run([data])
    assert run([*pieces, data[at:]]) == whole
    if whole is None:  # waits: only for what can still become a header
        assert len(data) < (V1_BYTES_MAX if data.startswith(b"PROXY") else V2_BYTES_MAX)
