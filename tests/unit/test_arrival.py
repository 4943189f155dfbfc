"""Whose address a connection is counted by: that of its TCP peer, unless a trusted proxy names
another.
"""

from __future__ import annotations

import pytest
from websockets.datastructures import Headers

from chatd.addresses import Networks
from chatd.wire.arrival import Sources
from chatd.wire.proxy_protocol import Malformed

PROXY, CLIENT = "10.0.0.1", "192.0.2.7"
TRUSTED = Networks(["10.0.0.0/8"])
HEADER = f"PROXY TCP4 {CLIENT} {PROXY} 5000 443\r\n".encode()


class Room:
    """Keeps what it was asked for."""

    def __init__(self, *, is_there: bool = True) -> None:
        self.asked: list[tuple[str, bool]] = []
        self._is_there = is_there

    def __call__(self, address: str, differ: bool) -> bool:
        self.asked.append((address, differ))
        return self._is_there


def test_who_is_no_trusted_peer_is_the_client_itself() -> None:
    assert Sources(TRUSTED).arrival("192.0.2.1", Room()) is None
    assert Sources(TRUSTED).arrival(PROXY, Room()) is not None


def test_a_port_of_proxies_refuses_everybody_else() -> None:
    assert Sources(TRUSTED, is_proxied=True).refuses("192.0.2.1")
    assert not Sources(TRUSTED, is_proxied=True).refuses(PROXY)
    assert not Sources(TRUSTED).refuses("192.0.2.1")


@pytest.mark.parametrize("is_there", [True, False])
def test_the_request_names_the_client(is_there: bool) -> None:
    room = Room(is_there=is_there)
    arrival = Sources(TRUSTED).arrival(PROXY, room)
    assert arrival is not None
    assert arrival.preface(b"GET / ") == b"GET / ", "nothing stands before the request"
    assert arrival.has_room(Headers([("X-Forwarded-For", f"{CLIENT}, 10.1.1.1")])) is is_there
    assert room.asked == [(CLIENT, False)]


@pytest.mark.parametrize("cut", range(len(HEADER) + 1))
def test_the_proxy_header_names_the_client_in_whatever_pieces_it_comes(cut: int) -> None:
    room = Room()
    arrival = Sources(TRUSTED, is_proxied=True).arrival(PROXY, room)
    assert arrival is not None
    rest = b""
    for piece in (HEADER[:cut], HEADER[cut:] + b"GET / "):
        got = arrival.preface(piece) if piece else None
        rest = got if got is not None else rest
    assert rest.endswith(b"GET / ")
    assert arrival.preface(b"HTTP/1.1") == b"HTTP/1.1", "there is one header"
    assert arrival.has_room(Headers())
    assert room.asked == [(CLIENT, False)]


def test_what_is_no_proxy_header_raises() -> None:
    arrival = Sources(TRUSTED, is_proxied=True).arrival(PROXY, Room())
    assert arrival is not None
    with pytest.raises(Malformed):
        arrival.preface(b"GET / HTTP/1.1\r\n")
