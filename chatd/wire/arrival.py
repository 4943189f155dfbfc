"""Finds a connection's client address during its handshake: by PROXY header, then HTTP headers.

    connected ─► Sources.arrival ─► Arrival.preface (bytes) ─► Arrival.has_room (headers)
          └── not from a trusted proxy: None, the           └ counts it by the address found
              socket's address is the client's

A connection from an address that no setting names is the client itself, whatever it sends. With
`proxy_protocol` every connection must begin with a PROXY header and come from a trusted address: if
a port accepted the header from anyone, any client could choose its address.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from chatd import addresses
from chatd.addresses import Header, Networks
from chatd.wire.proxy_protocol import ProxyReader

if TYPE_CHECKING:
    from websockets.datastructures import Headers


class Arrival:
    """One connection from a trusted proxy; dropped after the handshake.

    `room(address, differ)` is called at most once.
    """

    __slots__ = ("_address", "_proxy", "_room", "_sources")

    def __init__(self, sources: Sources, remote: str, room: Callable[[str, bool], bool]) -> None:
        self._sources, self._address, self._room = sources, remote, room
        self._proxy = ProxyReader() if sources.is_proxied else None

    def preface(self, data: bytes) -> bytes | None:
        """The bytes after the PROXY header, if one is expected; None: it is not complete yet.

        Raises Malformed.
        """
        if self._proxy is None:
            return data
        opening = self._proxy.feed(data)
        if opening is None:
            return None
        self._proxy = None
        if opening.address is not None:
            self._address = addresses.plain(opening.address)
        return opening.rest

    def has_room(self, headers: Headers) -> bool:
        """The request is complete: True if there is room for one more of the client's address."""
        lists = headers.get_all("X-Forwarded-For"), headers.get_all("Forwarded")
        found = addresses.find(self._address, *lists, self._sources.trusted, self._sources.header)
        return self._room(found.address, found.differ)


class Sources(NamedTuple):
    """The settings: trusted addresses, which header counts, and if a PROXY header is expected."""

    trusted: Networks
    header: Header = "auto"
    is_proxied: bool = False

    def refuses(self, remote: str) -> bool:
        """True if only trusted proxies may connect and this address is none."""
        return self.is_proxied and remote not in self.trusted

    def arrival(self, remote: str, room: Callable[[str, bool], bool]) -> Arrival | None:
        """The Arrival of a connection from a trusted address; None for all others."""
        return Arrival(self, remote, room) if remote in self.trusted else None
