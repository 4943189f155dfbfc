"""Two people chat over TLS. Runs on the installed machine, with the wheel's own SDK.

    chat.py URL CA ALICE_TOKEN BOB_TOKEN      ends once each has the other's message, on all devices
    chat.py URL CA ALICE_TOKEN BOB_TOKEN stay the same, and says so; all devices then send long messages for ever

Alice is at 127.0.0.2, bob at ::1. Each has eight devices: the kernel spreads connections over two
nodes by chance, and leaves one without any once in 32,768 times.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
import sys

from chatd.client import Client

ADDRESSES = {"alice": "127.0.0.2", "bob": "::1"}
DEVICES = 8
DEADLINE_S = 30


async def wait_for(client: Client, body: str) -> None:
    async for entry in client.entries():
        if entry.body == body:
            return


async def chat(alice: list[Client], bob: list[Client]) -> None:
    await alice[0].send("bob", "hello bob")
    await asyncio.gather(*(wait_for(device, "hello bob") for device in bob))
    await bob[0].send("alice", "hello alice")
    await asyncio.gather(*(wait_for(device, "hello alice") for device in alice))


async def talk(client: Client, to: str) -> None:
    """As fast as the server lets a user send; four messages fill a page of PostgreSQL, as they
    cannot be compressed.
    """
    while True:
        await client.send(to, secrets.token_hex(1000))


async def main(url: str, ca: str, alice_token: str, bob_token: str, *stay: str) -> None:
    tls = ssl.create_default_context(cafile=ca)

    async def devices(user: str, token: str) -> list[Client]:
        options = {"ssl": tls, "local_addr": (ADDRESSES[user], 0)}
        clients = [Client(url, token=token, device=f"{user}{n}", options=options) for n in range(DEVICES)]
        return [await stack.enter_async_context(client) for client in clients]

    async with contextlib.AsyncExitStack() as stack:
        async with asyncio.timeout(DEADLINE_S):
            alice, bob = await devices("alice", alice_token), await devices("bob", bob_token)
            await chat(alice, bob)
        print("two people have chatted", flush=True)
        if stay:
            await asyncio.gather(*(talk(device, "bob") for device in alice), *(talk(device, "alice") for device in bob))


asyncio.run(main(*sys.argv[1:]))
