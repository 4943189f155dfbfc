"""Reserves the port that the workers of one `chatd serve --workers` share.

lock      keeps other supervisors from the port while no worker listens yet
reserve   binds it, without listening, to every address of the host: it stays ours while no
          worker can take connections, and port 0 becomes a free one
again     binds it once more beside that, to listen (SO_REUSEPORT, socket(7))
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Sequence
from typing import Final

from chatd.net import listen_errors

RESERVE_TRIES_MAX: Final = 10


def lock(host: str, port: int) -> list[socket.socket]:
    """Sockets that keep other supervisors from this port until they are closed.

    Before a worker listens, a bind of another supervisor with SO_REUSEPORT would succeed. So the
    port is locked by names in Linux's abstract namespace, which has the same scope as ports and
    ends with this process. On other systems nothing is locked. Raises SettingError if it is taken.
    """
    locks: list[socket.socket] = []
    if port and sys.platform == "linux":
        try:
            for family, _, _, _, address in socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                locks.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
                locks[-1].bind(f"\0chatd-port-{family:d}-{address[0]}-{port}")
        except (OSError, UnicodeError) as e:
            for lock in locks:
                lock.close()
            raise listen_errors.refused("", host, port, e) from e
    return locks


def reserve(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to the port (0: a free one) on every address of the host, not listening.

    Raises SettingError.
    """
    try:
        for attempt in range(RESERVE_TRIES_MAX):
            try:
                return bind_all(host, port)
            except OSError:
                # A port that is free on the first address may be taken on the second
                if port or attempt == RESERVE_TRIES_MAX - 1:
                    raise
        raise AssertionError("unreachable")
    except (OSError, UnicodeError) as e:
        raise listen_errors.refused("", host, port, e) from e


def again(reserved: Sequence[socket.socket]) -> list[socket.socket]:
    """Sockets bound to the same addresses, to listen on. Raises OSError."""
    with contextlib.ExitStack() as stack:
        bound = [
            stack.enter_context(_bind(one.family, one.type, one.proto, one.getsockname(), shared=True))
            for one in reserved
        ]
        stack.pop_all()
    return bound


def bind_all(host: str, port: int) -> list[socket.socket]:
    """One attempt at `reserve`. Raises OSError."""
    bound: list[socket.socket] = []
    try:
        for family, kind, proto, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            # Without SO_REUSEPORT first: it fails if any process listens. With it, this chatd would
            # share the port of another one of the same user without an error.
            if port:
                _bind(family, kind, proto, (address[0], port, *address[2:]), shared=False).close()
            bound.append(_bind(family, kind, proto, (address[0], port, *address[2:]), shared=True))
            port = bound[0].getsockname()[1]
    except BaseException:
        for one in bound:
            one.close()
        raise
    return bound


def _bind(family: int, kind: int, proto: int, address: tuple[object, ...], *, shared: bool) -> socket.socket:
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock
