"""An attacker's machine: a kind of attack on so many connections at once, each made again whenever
it ends.

It comes from addresses of its own (127.0.0.2 and further ones), as limits are by address. Order:
fire.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from typing import Any, Final

from bench.attacks.attacker import Attacker, Tally
from bench.attacks.kinds import BY_NAME, Kind, Who
from bench.crowd import Endpoint
from bench.generator import Load
from chatd.chat.auth import issue
from chatd.ids import UserId

TOKEN_TTL_S: Final = 86_400.0
REFUSED_S: Final = 0.01  # before it dials again where nobody took it
ADDRESSES: Final = 10
ONE_ADDRESS_MAX: Final = 250  # connections from one address; more come from several
DIALLING_MAX: Final = 64  # at once


class Attacks(Load):
    """`users`: [name, conversation to read, conversation to edit] of each attacker; `peers`: users
    with whom all of them have an open one.
    """

    def __init__(
        self, endpoint: Endpoint, tag: str, seed: int, *, users: list[list[str]], peers: list[str], admin_port: int
    ) -> None:
        super().__init__(endpoint, tag, seed)
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # it is no measure: it goes when those who measure have gone
        self._users, self._peers, self._admin_port = users, peers, admin_port
        keys, now = endpoint.keys(), time.time()
        self._tokens = [issue(keys, UserId(name), TOKEN_TTL_S, now, None, None) for name, _, _ in users]
        self._until = 0.0

    async def fire(self, kind: str, connections: int, seconds: float, at: float) -> dict[str, Any]:
        """Attack for so long, from that time on; gives what was seen."""
        one, tally = BY_NAME[kind], Tally()
        n = max(connections, one.times) if one.times else 0
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        self._until = time.perf_counter() + seconds
        gate = asyncio.Semaphore(DIALLING_MAX)
        slots = [asyncio.ensure_future(self._slot(one, n, place, tally, gate)) for place in range(n)]
        await asyncio.sleep(max(0.0, self._until - time.perf_counter()))
        for slot in slots:
            slot.cancel()
        await asyncio.gather(*slots, return_exceptions=True)
        return {
            "connections": n,
            "dials": tally.dials,
            "refused_dials": tally.refused_dials,
            "frames": tally.frames,
            "bytes_out": tally.bytes_out,
            "bytes_in": tally.bytes_in,
            "closes": dict(tally.closes),
            "statuses": dict(tally.statuses),
            "errors": dict(tally.errors),
        }

    async def _slot(self, kind: Kind, n: int, place: int, tally: Tally, gate: asyncio.Semaphore) -> None:
        """One connection after the other."""
        who = self._who(kind, place)
        address = f"127.0.0.{2 + place % (ADDRESSES if n > ONE_ADDRESS_MAX else 1)}"
        while True:
            ended: asyncio.Future[Attacker] = asyncio.get_running_loop().create_future()
            attacker = Attacker(kind, who, tally, ended.set_result)
            try:
                async with gate:
                    await self._dial(attacker, who, address)
            except OSError:
                tally.refused_dials += 1
                await asyncio.sleep(REFUSED_S)
                continue
            try:
                await asyncio.shield(ended)
            finally:
                if not ended.done():
                    attacker.stop()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(ended, 1.0)

    async def _dial(self, attacker: Attacker, who: Who, address: str) -> None:
        """A port of its own only once it connects, or they would run out."""
        sock = socket.socket()
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
            sock.bind((address, 0))
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (who.host, who.port))
            await loop.create_connection(lambda: attacker, sock=sock)
        except BaseException:
            sock.close()
            raise

    def _who(self, kind: Kind, place: int) -> Who:
        user = place // kind.of_user % len(self._users)
        name, deep, edited = self._users[user]
        port = self._admin_port if kind.admin else self.endpoint.ports[place % len(self.endpoint.ports)]
        device = f"mallory{place % min(kind.of_user, 10)}"
        return Who(name, device, self._tokens[user], self.endpoint.host, port, self._peers, deep, edited)


LOAD = Attacks
