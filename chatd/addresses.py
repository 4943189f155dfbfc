"""Finds a client's address behind proxies. Pure: headers in, an address out.

    X-Forwarded-For: 203.0.113.7, 198.51.100.9, 10.0.0.2     connected: 10.0.0.1
                     the client's words ┘         │     └ trusted as well: a proxy, go left
                                                  └ the first that is not trusted: the client
    trusted: 10.0.0.0/8

Each proxy appends the address that connected to it. So the list is read from the right, beginning
with the remote address of our own connection, and only entries that a trusted address wrote are
believed. Entries that the client wrote itself are further left and never reached. The same holds
for `Forwarded` (RFC 7239).

An entry that cannot be read ends the walk: a name, `unknown`, an obfuscated identifier. The
client's address is then that of the last proxy before it. Every byte is treated as hostile: nothing
raises, and of a long list only the right end is read.

Rejected: the leftmost address (a client can write any). Rejected: preferring one header if both
differ: a proxy that writes one of them passes on the client's version of the other.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

HOPS_MAX: Final = 32  # addresses that are read, from the right
# Of all lines of Forwarded: room for 32 hops with every parameter of RFC 7239. Lines are read
# whole, and 16 KB took 6 ms of a handshake.
FORWARDED_CHARS_MAX: Final = 4_096
PREFIX_V6: Final = 64  # a client with one IPv6 address has all of its /64

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Header: TypeAlias = Literal["auto", "x-forwarded-for", "forwarded"]

_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::[A-Za-z0-9._-]{1,64})?|([0-9.]{7,15})(?::[A-Za-z0-9._-]{1,64})?")
_PAIR = re.compile(
    r'[ \t]*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=(?:([!#$%&\'*+.^_`|~0-9A-Za-z:\[\]-]+)|"((?:[^"\\]|\\.)*)")[ \t]*'
)
# Characters of a quoted node that are read: one with a port has 112, each of which may be escaped.
_QUOTED_MAX: Final = 256


class Networks:
    """The networks of a setting. Raises ValueError if a text is no network.

    `in` takes an address as text; a text that is no address is in no network.
    """

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [_network(text.strip()) for text in networks]

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: str) -> bool:
        found = _read(address) if self._networks else None
        return found is not None and any(found in network for network in self._networks)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as e:
        has_host_bits = "host bits" in str(e)
        raise ValueError(
            "names an address within a network, not the network" if has_host_bits else "is no network"
        ) from None


class Found(NamedTuple):
    """The client's address.

    `differ`: both headers were there and named different addresses, so neither counts.
    """

    address: str
    differ: bool = False


def plain(address: str) -> str:
    """A socket's remote address in one form: an IPv4 address mapped into IPv6 becomes IPv4."""
    if ":" not in address:
        return address
    found = _read(address)
    return address if found is None else str(found)


def counted_as(address: str) -> str:
    """The key for limits by address: of an IPv6 address its /64, which one machine can have."""
    if ":" not in address or (found := _read(address)) is None or found.version == 4:
        return address
    return str(ipaddress.ip_network((found, PREFIX_V6), strict=False))


def is_private(address: str) -> bool:
    """True for addresses of no internet client: many connections from one mean a proxy."""
    found = _read(address)
    return found is not None and (found.is_private or found.is_loopback or found.is_link_local)


def find(
    remote: str, forwarded_for: Sequence[str], forwarded: Sequence[str], trusted: Networks, header: Header = "auto"
) -> Found:
    """The client's address.

    `remote`: the remote address of the connection. `forwarded_for`, `forwarded`: the lines of both
    headers, in order. `header`: which of them counts.
    """
    if remote not in trusted:
        return Found(remote)
    by_list = _walk(remote, _listed(forwarded_for), trusted) if forwarded_for and header != "forwarded" else None
    by_rfc = _walk(remote, _elements(forwarded), trusted) if forwarded and header != "x-forwarded-for" else None
    if by_list is not None and by_rfc is not None and by_list != by_rfc:
        return Found(remote, differ=True)
    return Found(by_list or by_rfc or remote)


def _walk(remote: str, hops: Iterator[str | None], trusted: Networks) -> str:
    """Walk from the right while the address before is trusted. A hop of None cannot be read."""
    at = remote
    for _ in range(HOPS_MAX):
        hop = next(hops, None)
        if hop is None:
            return at
        at = hop
        if at not in trusted:
            return at
    return remote  # no deployment has this many proxies


def _listed(lines: Sequence[str]) -> Iterator[str | None]:
    """The addresses of X-Forwarded-For, from the right."""
    for line in reversed(lines):
        for part in reversed(line.rsplit(",", HOPS_MAX)):
            if text := part.strip(" \t"):  # empty elements are ignored (RFC 9110 5.6.1)
                yield _node(text)


def _elements(lines: Sequence[str]) -> Iterator[str | None]:
    """The addresses of Forwarded's `for`, from the right; a malformed line gives None and ends it.

    Each line is read whole and by itself: a quote that a client leaves open must not hide what a
    proxy wrote after it. So a line that is too long counts as malformed.
    """
    left = FORWARDED_CHARS_MAX
    for line in reversed(lines):
        left -= len(line)
        nodes = _nodes(line) if left >= 0 else None
        if nodes is None:
            yield None
            return
        for node in reversed(nodes):
            yield None if node is None else _node(node)


def _nodes(line: str) -> list[str | None] | None:
    """The `for` of each element of a line, as written; None if the line breaks RFC 7239."""
    nodes: list[str | None] = []
    at, node = 0, None
    while True:
        pair = _PAIR.match(line, at)
        if pair is None:
            return None
        if pair[1].lower() == "for":
            if node is not None:
                return None
            node = pair[2] if pair[2] is not None else re.sub(r"\\(.)", r"\1", pair[3][:_QUOTED_MAX])
        at = pair.end()
        if at == len(line):
            return [*nodes, node]
        if line[at] == ",":
            nodes.append(node)
            node = None
        elif line[at] != ";":
            return None
        at += 1


def _node(text: str) -> str | None:
    """An address as the headers write it: bare or with a port; IPv6 with a port is in brackets."""
    if (found := _read(text)) is not None:
        return str(found)
    match = _WITH_PORT.fullmatch(text)
    found = None if match is None else _read(match[1] or match[2])
    if found is None or (match is not None and match[1] and found.version == 4 and ":" not in match[1]):
        return None
    return str(found)


def _read(text: str) -> Address | None:
    """An address without its zone; an IPv4 address mapped into IPv6 becomes IPv4."""
    if len(text) > 64 or not text.isascii():
        return None
    try:
        found = ipaddress.ip_address(text.partition("%")[0] if ":" in text else text)
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found
