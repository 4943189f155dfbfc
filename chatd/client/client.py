"""The client of chatd: sends, and gives every entry once, over any number of connections.

    async with Client(url, token=token, device="bot-1") as client:
        await client.send("bob", "hi")
        async for entry in client.entries():
            ...

Guarantees, and what they rest on:
- `send`, `edit`, `delete` return once the entry is durable. They raise RequestError only when it is
  not in the log and never will be. Until one of the two is known they try again, over reconnects,
  with the same cid.
- `entries` gives every entry after the place where this client started, once and in order of seq
  per conversation: the peer's, and this user's own from any device. With `state` or `store` it
  continues where that was taken. inbox.py says how, and what bounds the memory.
- Nothing here waits for a slow reader of `entries` or `events`.

A client is for one event loop and is used once: `open`, then `close`; `state()` outlives it.

    life.py       open, close, the line        sends.py      send, submit
    receiving.py  entries, events              asking.py     history, watch, typing
    handlers.py   on_message, run              store.py      the state over restarts

Neighbours: `reconnect.py` makes its connections, `session.py` is one of them, `desk.py` keeps what
outlives them. docs/client.md is the page for users.
"""

from __future__ import annotations

from chatd.client.asking import Asking
from chatd.client.handlers import Handlers


class Client(Handlers, Asking):
    """A user's messages over reconnects; the guarantees are in the module's docstring.

    `token`: the token, or a callable (also async) that returns it; it is called with True when a
    new one is needed. `device` must be stable per installation: another connection with the same
    one ends this client. `state`: what `state()` returned in an earlier process. `store`: where
    this client loads its state from and saves it, instead of `state`. `auto_ack`: entries taken
    from `entries` count as delivered. `queue_max`: entries in memory that wait for the app.
    `outbox_max`: sends that wait for the server. `on_line`: called in the client's loop with each
    change of `line`, also of those before `open` returns. `options` go to `websockets.connect`.
    Raises ValueError for a `url` that is none and a `state` that is none.
    """
