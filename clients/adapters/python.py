"""The Python SDK behind the line protocol of docs/conformance.md.

chatd conformance --client "python clients/adapters/python.py"
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from chatd.client import Client, RequestError, Stopped


def say(event: str, **keys: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **keys}) + "\n")
    sys.stdout.flush()


def as_line(client: Client, entry: Any) -> dict[str, object]:
    users = {"from": client.user, "to": entry.peer} if entry.own else {"from": entry.peer, "to": client.user}
    line = {"c": entry.c, "seq": entry.seq, "ts": entry.ts, "kind": entry.kind, "body": entry.body, **users}
    return line if entry.ref is None else {**line, "ref": entry.ref}


async def show(client: Client) -> None:
    """Give all entries, until the client gives up."""
    try:
        await client.open()
        async for entry in client.entries():
            say("entry", **as_line(client, entry))
    except Stopped:
        say("ended")


async def do(client: Client, n: int, what: str, keys: dict[str, Any]) -> None:
    to = keys["to"]
    try:
        match what:
            case "send":
                say("done", n=n, seq=(await client.send(to, keys["body"])).seq)
            case "edit":
                say("done", n=n, seq=(await client.edit(to, keys["ref"], keys["body"])).seq)
            case "delete":
                say("done", n=n, seq=(await client.delete(to, keys["ref"])).seq)
            case "read":
                await client.read(to, keys["seq"])
                say("done", n=n)
            case "history":
                page = await client.history(to, before=keys["before"])
                say("done", n=n, entries=[as_line(client, entry) for entry in page.entries])
    except RequestError as e:
        say("refused", n=n, code=e.code)


async def main() -> None:
    say("ready", name="chatd's Python SDK", can=["send", "edit", "delete", "read", "history"])
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    client: Client | None = None
    tasks: set[asyncio.Task[None]] = set()
    async for line in lines:
        keys = json.loads(line)
        what = keys.pop("do")
        if what == "connect":
            old, new = keys["token"], keys["new_token"]
            client = Client(keys["url"], token=lambda renew, old=old, new=new: new if renew else old, device="adapter")
            tasks.add(asyncio.create_task(show(client)))
        elif what == "close":
            break
        elif client is not None:
            tasks.add(asyncio.create_task(do(client, keys.pop("n"), what, keys)))
    if client is not None:
        await client.close(drain=False)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


asyncio.run(main())
