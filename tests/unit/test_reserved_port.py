"""The port that the workers of one supervisor share. Against real sockets."""

from __future__ import annotations

import socket

import pytest

from chatd.errors import SettingError
from chatd.ops import reserved_port


def test_a_free_port_is_reserved_on_every_address_and_workers_can_listen_on_it() -> None:
    reserved = reserved_port.reserve("localhost", 0)
    try:
        (port,) = {sock.getsockname()[1] for sock in reserved}
        with socket.socket() as worker, socket.socket() as stranger:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("127.0.0.1", port))
            worker.listen()
            with pytest.raises(OSError, match="in use"):
                stranger.bind(("127.0.0.1", port))
    finally:
        for sock in reserved:
            sock.close()


def test_a_second_supervisor_is_refused_while_the_firsts_workers_have_not_begun_to_listen() -> None:
    """Both could bind: nobody listens yet."""
    first = reserved_port.reserve("127.0.0.1", 0)
    port = first[0].getsockname()[1]
    locks = reserved_port.lock("127.0.0.1", port)
    try:
        reserved_port.reserve("127.0.0.1", port)[0].close()  # what a bind alone would say
        with pytest.raises(
            SettingError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use; stop what uses it"
        ):
            reserved_port.lock("127.0.0.1", port)
    finally:
        for one in (*first, *locks):
            one.close()
    for one in reserved_port.lock("127.0.0.1", port):
        one.close()


@pytest.mark.parametrize("host", ["203.0.113.9", "a..b"])
def test_a_supervisor_blames_the_address_too(host: str) -> None:
    with pytest.raises(SettingError, match=r"^host: "):
        reserved_port.reserve(host, 0)
