"""Who is to blame where nobody can listen: the address or the port. Against real sockets."""

from __future__ import annotations

import socket

import pytest

from chatd.net import listen_errors
from chatd.ops import reserved_port


@pytest.mark.parametrize("host", ["203.0.113.9", "no.such.host.invalid", "1.2.3", "a..b", "::1%nope", "x" * 70])
@pytest.mark.parametrize("what", ["", "admin_"])
def test_an_address_that_this_machine_does_not_have_is_to_blame(host: str, what: str) -> None:
    error: OSError | UnicodeError | None = None
    try:
        reserved_port.bind_all(host, 0)
    except (OSError, UnicodeError) as e:
        error = e
    assert error is not None
    text = str(listen_errors.refused(what, host, 8080, error))
    assert text.startswith(f"{what}host: ")
    assert f"--{what.replace('_', '-')}host" in text


@pytest.mark.parametrize(("what", "remedy"), [("", "--port"), ("admin_", "--admin-port, or -1 for none")])
def test_a_port_that_is_taken_is_to_blame(what: str, remedy: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        socket.socket() as sock,
        pytest.raises(OSError, match="in use") as e,
    ):
        sock.bind(taken.getsockname())
    text = str(listen_errors.refused(what, "127.0.0.1", 80, e.value))
    assert text.startswith(f"{what}port: ")
    assert remedy in text


def test_words_that_the_loop_puts_before_are_left_out() -> None:
    error = OSError(99, "error while attempting to bind on address ('203.0.113.9', 0): cannot assign requested address")
    assert "error while" not in str(listen_errors.refused("", "203.0.113.9", 0, error))
