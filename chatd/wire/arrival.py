"""Where a connection comes from, found out while its handshake comes in: the PROXY header first,
then the request's own.

    connection made ─► Sources.arrival ─► Arrival.preface (bytes) ─► Arrival.has_room (headers)
          └── no trusted peer: None, the peer's address is the client's       └ counts it by the address found

A peer that no setting names is the client itself, whatever it writes. With `proxy_protocol` every
connection begins with a PROXY header, from a trusted peer or not at all: a port that takes it from
anybody lets anybody choose an address.
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
    """Of one connection from a trusted peer; let go after the handshake.

    `room(address, differ)` may be called once.
    """

    __slots__ = ("_address", "_proxy", "_room", "_sources")

    def __init__(self, sources: Sources, peer: str, room: Callable[[str, bool], bool]) -> None:
        self._sources, self._address, self._room = sources, peer, room
        self._proxy = ProxyReader() if sources.is_proxied else None

    def preface(self, data: bytes) -> bytes | None:
        """What stands behind the PROXY header, if there is to be one; None: more, please.

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
        """The request is whole: is there room for one more of the address that it came from?"""
        lists = headers.get_all("X-Forwarded-For"), headers.get_all("Forwarded")
        found = addresses.find(self._address, *lists, self._sources.trusted, self._sources.header)
        return self._room(found.address, found.differ)


class Sources(NamedTuple):
    """The settings: whom to believe, which header, and whether connections begin with a PROXY
    header.
    """

    trusted: Networks
    header: Header = "auto"
    is_proxied: bool = False

    def refuses(self, peer: str) -> bool:
        """Nobody but a proxy that is trusted may connect."""
        return self.is_proxied and peer not in self.trusted

    def arrival(self, peer: str, room: Callable[[str, bool], bool]) -> Arrival | None:
        """For a connection from a trusted peer; None for all others."""
        return Arrival(self, peer, room) if peer in self.trusted else None
