"""The shipped fake server of `chatd.client.testing`, with a deadline; clients that do not wait.

tests/wire/test_fake_vectors.py holds it to the server's vectors, and lists what it cannot do.
"""

from __future__ import annotations

import random
from typing import Any

from chatd.client import Client, Event, Line
from chatd.client.testing import FakeChatd as Shipped
from chatd.client.testing import Fault as Fault
from chatd.client.testing import Frame as Frame
from chatd.client.testing import Session as Session

DEADLINE_S = 20.0  # for a whole test: what hangs fails


class FakeChatd(Shipped):
    def __init__(self) -> None:
        super().__init__(within_s=DEADLINE_S)


class NoJitter(random.Random):
    """The shortest wait there can be, for clients under test."""

    def random(self) -> float:
        return 0.0


def make_client(url: str, **keys: Any) -> Client:
    """A client of user `me` that does not wait between its tries."""
    settings: dict[str, Any] = {"token": "me", "device": "bot", "rng": NoJitter()}
    return Client(url, **settings | keys)


async def next_event(client: Client) -> Event:
    """The next event that does not tell how the line stands."""
    async for event in client.events():
        if not isinstance(event, Line):
            return event
    raise AssertionError("the client has ended")
