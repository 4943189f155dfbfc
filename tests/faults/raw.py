"""A client that behaves badly: a bare TCP socket that shakes hands and from then on does only what
the test says; it answers no ping.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from typing import Any, ClassVar

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chatd.v1\r\n"
    b"\r\n"
)
TEXT, CLOSE = 1, 8


class Raw:
    """Reads only when told to. Whoever opens some calls `close_all` at the end."""

    _opened: ClassVar[list[Raw]] = []

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._data = bytearray()
        self._opened.append(self)

    @classmethod
    def close_all(cls) -> None:
        for raw in cls._opened:
            raw.close()
        cls._opened.clear()

    @classmethod
    async def dial(cls, port: int, *, receive_bytes: int | None = None, address: str = "") -> Raw:
        """A TCP connection; `receive_bytes` makes the kernel hold less for us; `address`: ours."""
        sock = socket.socket()
        sock.setblocking(False)
        if address:
            sock.bind((address, 0))
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(sock)

    @classmethod
    async def open(cls, port: int, *, receive_bytes: int | None = None, address: str = "") -> Raw:
        """Also the handshake."""
        raw = await cls.dial(port, receive_bytes=receive_bytes, address=address)
        await raw.write(HANDSHAKE)
        while b"\r\n\r\n" not in raw._data:
            assert await raw.read(), "closed in the handshake"
        del raw._data[: raw._data.index(b"\r\n\r\n") + 4]
        return raw

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def say(self, t: str, id: int, **keys: Any) -> None:
        """One masked text frame."""
        payload = json.dumps({"t": t, "id": id, **keys}).encode()
        mask = os.urandom(4)
        head = (
            struct.pack("!BB", 0x81, 0x80 | len(payload))
            if len(payload) < 126
            else struct.pack("!BBH", 0x81, 0xFE, len(payload))
        )
        await self.write(head + mask + bytes(b ^ mask[n % 4] for n, b in enumerate(payload)))

    async def read(self) -> bytes:
        """Some bytes; b"" at the end."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 20)
        except ConnectionResetError:
            data = b""
        self._data += data
        return data

    async def frame(self) -> tuple[int, bytes] | None:
        """The next frame; None at the end of the connection."""
        while (frame := self._take()) is None:
            if not await self.read():
                return None
        return frame

    def _take(self) -> tuple[int, bytes] | None:
        d = self._data
        if len(d) < 2:
            return None
        size, at = d[1] & 0x7F, 2
        if size >= 126:
            at = 4 if size == 126 else 10
            if len(d) < at:
                return None
            size = int.from_bytes(d[2:at], "big")
        if len(d) < at + size:
            return None
        frame = (d[0] & 0x0F, bytes(d[at : at + size]))
        del d[: at + size]
        return frame

    async def closed(self) -> int:
        """Read to the end; gives the close code, 1006 if none came."""
        code = 1006
        while (frame := await self.frame()) is not None:
            if frame[0] == CLOSE:
                code = int.from_bytes(frame[1][:2], "big")
                self.sock.close()
                break
        return code

    async def frame_of_close(self) -> bytes:
        """Read until the other side's close; gives its payload, and closes nothing."""
        while (frame := await self.frame()) is not None:
            if frame[0] == CLOSE:
                return frame[1]
        return b""

    async def hello(self, token: str, device: str) -> dict[str, Any]:
        await self.say("hello", 1, v=1, token=token, device=device)
        frame = await self.frame()
        assert frame is not None
        welcome: dict[str, Any] = json.loads(frame[1])
        assert welcome["t"] == "welcome", welcome
        return welcome

    def close(self) -> None:
        self.sock.close()
