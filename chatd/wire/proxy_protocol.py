"""The PROXY protocol, versions 1 and 2: the header that a proxy sends before a connection's bytes.

Pure. The specification: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt

    bytes ──feed──► None (not complete yet) | Opening(address, rest) | raises Malformed

    v1   PROXY TCP4 203.0.113.7 10.0.0.1 51234 8080\\r\\n          at most V1_BYTES_MAX
    v2   signature 12 │ version, command 1 │ family 1 │ length 2 │ addresses, TLVs (length bytes)
                                                                 at most V2_BYTES_MAX

A proxy that checks our health sends LOCAL (v2) or UNKNOWN (v1): then there is no address, and the
connection is the proxy's own. The header is believed here; `arrival` admits only trusted proxies.
Everything is bounded: a byte that cannot belong to either version ends the header at once, so
anything that is no PROXY header never waits for more.
"""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple

V1_BYTES_MAX: Final = 107  # with CR LF, by the specification
V2_BYTES_MAX: Final = 4_096  # a proxy that ends TLS sends TLVs with names of certificates
SIGNATURE_V1: Final = b"PROXY "
SIGNATURE_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
HEAD_V2: Final = 16

LOCAL, PROXY = 0x20, 0x21  # version 2, and the command
TCP4, TCP6 = 0x11, 0x21
UNSPECIFIED, UNIX_STREAM = 0x00, 0x31  # families without an address of the client
_ADDRESS_BYTES: Final = {TCP4: 12, TCP6: 36, UNIX_STREAM: 216, UNSPECIFIED: 0}


class Malformed(Exception):
    """This is no PROXY header. `str()` says what is wrong, without quoting a byte of it."""


class Opening(NamedTuple):
    """The client's address, None for the proxy's own connection; and the bytes after the header."""

    address: str | None
    rest: bytes


class ProxyReader:
    """Reads one connection's header. Do not call `feed` again after an Opening or an error."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> Opening | None:
        """Take more bytes; gives None until the header is complete. Raises Malformed."""
        data = self._data = self._data + data
        if data.startswith(SIGNATURE_V2[: len(data)]):
            return _read_v2(data)
        if data.startswith(SIGNATURE_V1[: len(data)]):
            return _read_v1(data)
        raise Malformed("the connection does not begin with a PROXY header")


def _read_v1(data: bytes) -> Opening | None:
    end = data.find(b"\r\n", 0, V1_BYTES_MAX)
    if end < 0:
        if len(data) >= V1_BYTES_MAX:
            raise Malformed("the line of a version 1 header is too long")
        return None
    rest = data[end + 2 :]
    try:
        parts = data[:end].decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise Malformed("a version 1 header is not ASCII") from None
    if parts[1:2] == ["UNKNOWN"]:
        return Opening(None, rest)
    if len(parts) != 6 or parts[1] not in ("TCP4", "TCP6"):
        raise Malformed("a version 1 header is not `PROXY TCP4|TCP6 source destination port port`")
    version = 4 if parts[1] == "TCP4" else 6
    source = _address(parts[2], version)
    _address(parts[3], version)
    if not all(_is_port(port) for port in parts[4:]):
        raise Malformed("a version 1 header has an invalid port")
    return Opening(source, rest)


def _address(text: str, version: int) -> str:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        raise Malformed("a version 1 header has an invalid address") from None
    if found.version != version or "%" in text:
        raise Malformed("a version 1 header has an address of another family")
    return str(found)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65_535


def _read_v2(data: bytes) -> Opening | None:
    if len(data) >= 13 and data[12] not in (LOCAL, PROXY):
        raise Malformed("a version 2 header has another version or command")
    if len(data) >= 14 and data[12] == PROXY and data[13] not in _ADDRESS_BYTES:
        raise Malformed("a version 2 header is not of a stream")
    if len(data) < HEAD_V2:
        return None
    end = HEAD_V2 + int.from_bytes(data[14:16])
    if end > V2_BYTES_MAX:
        raise Malformed(f"a version 2 header is longer than {V2_BYTES_MAX} bytes")
    command, family = data[12], data[13]
    if command == PROXY and end - HEAD_V2 < _ADDRESS_BYTES[family]:
        raise Malformed("a version 2 header is shorter than its addresses")
    if len(data) < end:
        return None
    size = {TCP4: 4, TCP6: 16}.get(family, 0)
    if command == LOCAL or not size:
        return Opening(None, data[end:])
    return Opening(str(ipaddress.ip_address(data[HEAD_V2 : HEAD_V2 + size])), data[end:])
