"""The fake server of the SDK's tests, tests/fix_fake_chatd.py, against the server's vectors.

What the fake does otherwise than the server, an SDK's test may take for the contract. So it runs
all of chatd/conformance/vectors/server; `BEYOND` names those that it cannot do, and can only shrink.
"""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from chatd.conformance import vectors
from chatd.conformance.server_vectors import WAIT_S, ServerRunner
from chatd.conformance.values import Mismatch
from chatd.conformance.vectors import Vector
from tests.fix_fake_chatd import FakeChatd

VECTORS: Final[dict[str, dict[str, Vector]]] = {}  # file -> name -> vector
for one in vectors.load("server"):
    VECTORS.setdefault(one.file, {})[one.name] = one

# Why the fake cannot do a vector.
FRAMING = "HTTP and framing are left to `websockets`"
PRESENCE = "presence is online or offline alone, to anybody, and not in the welcome"
MALFORMED = "requests are not checked: a wrong one ends the connection, or is taken as it is"
RATES = "there are no rates"
TOKENS = "a token is a name: nothing in it is signed, dated or checked"
ENDLESS = "nothing runs out: no deadline for a hello, nor one for edits, nor a bound on devices"

# file -> reason -> names of vectors
BEYOND: dict[str, dict[str, list[str]]] = {
    "01_transport": {
        FRAMING: [
            "a client that offers no subprotocol is let in",
            "a foreign origin is refused",
            "there is no WebSocket elsewhere",
            "a binary message closes with 1003",
            "a frame of frame_bytes is read",
            "a frame over frame_bytes closes with 1009",
        ],
    },
    "02_frames": {
        MALFORMED: [
            "what is no JSON object gets bad_frame with id 0",
            "without a usable id the reply has id 0",
            "without a t the frame is unreadable",
            "deep nesting under an unknown key is ignored, and harms nobody",
            (
                "a fault of one value is answered with the request's id: half a character, as a text cut inside "
                "an emoji has"
            ),
            "a fault of one value is answered with the request's id: control characters, numbers beyond any bound",
            "faults of a hello are answered with its id, and another hello may follow",
            "21 unreadable frames close with 4000",
            "an id must be greater than every earlier one",
            "a request that is refused has used its id up",
            "an unreadable frame uses no id up",
            "an unknown t gets unknown_type, also the server's own frames and other spellings",
            "requests may be pipelined",
            "a request about a conversation names it by exactly one of c and to",
            "user ids are checked wherever one is named",
        ],
    },
    "03_hello": {
        TOKENS: [
            "welcome tells who one is and what holds here",
            "a token that is none is refused, and the connection ends",
            "a token signed by another key is refused",
            "an unsigned token is refused",
            "a token past its exp is refused",
            "the session ends with its token",
            "a refresh keeps the session",
            "a token that is valid for longer than the server takes is refused",
            "so it is by refresh, which closes nothing",
            "a refused refresh closes nothing and changes nothing",
        ],
        PRESENCE: [
            "all that hello may hold",
        ],
        MALFORMED: [
            "nothing but hello is taken before hello",
            "a second hello gets bad_state",
            "bad requests do not buy time for hello",
            "another version gets bad_version, and the connection ends",
            "keys of hello are checked",
        ],
        ENDLESS: [
            "no hello in time closes with 4003",
            "one device too many closes the longest idle",
        ],
        "it does not drain": [
            "a draining server says so and closes with 1012",
        ],
    },
    "04_send": {
        "every name is a user": [
            "a server may refuse unknown recipients",
        ],
        MALFORMED: [
            "a body has 1 to 2,048 bytes of UTF-8",
            "control characters but newline and tab are refused",
            "keys of send are checked",
        ],
    },
    "05_edit_delete": {
        ENDLESS: [
            "the time to edit ends, the time to delete does not",
        ],
        MALFORMED: [
            "the text of an edit is checked like a message's",
            "a cid that names no own message of this conversation, or another one than ref, is no_message",
        ],
    },
    "07_history": {
        MALFORMED: [
            "keys of history are checked",
            "keys of conversations are checked",
        ],
    },
    "08_presence": {
        PRESENCE: [
            "presence is hidden until both have sent, then follows",
            "online, away, offline with the time last seen",
            "a quick reconnect does not show",
            "several devices make one status",
        ],
        MALFORMED: [
            "keys of watch and presence are checked",
        ],
    },
    "09_order_and_rate": {
        RATES: [
            "the 11th message in 5 s is told to wait, and those behind it are blocked until it comes again",
            "skip gives the waiting cid up",
            "the block ends with the connection",
            "a block is of one conversation alone",
            "a cid that is known is answered over the rate, and costs nothing",
            "edits and deletes count",
            "the rate is the user's, over all devices",
            "coming again before retry_ms lengthens the wait, and ends the connection at last",
            "before retry_ms a fresh cid after a skip lengthens the wait as well, in whatever conversation",
            "what may have been on its way when the refusal came is not held against it",
            "too many frames a second are refused, and one that makes an entry blocks its conversation",
            "new conversations per hour are limited",
        ],
    },
    "11_small_print": {
        RATES: [
            "a cid has no case: it comes back in small letters, wherever it is named",
        ],
        MALFORMED: [
            "an err to hello without a close leaves the connection open for another hello",
            "null is an absent key for some and a fault for others",
            "limit is an integer from 1 to limits.history in conversations too",
            "user ids by category: letters, marks, numbers, punctuation, symbols, and spaces within",
            "a number that is no seq gets bad_seq, whichever key it stands under",
        ],
    },
    "12_user_ids": {
        MALFORMED: [
            (
                "a new peer has a visible name: refused are blank and default-ignorable characters, what is "
                "unassigned or not in NFC, and joiners that join nothing"
            ),
        ],
        TOKENS: [
            "a token whose sub can become no user id is refused, where nobody of that name was ever here",
        ],
        PRESENCE: [
            "whom a hello watches is not judged: they may be older than the rule",
        ],
    },
}

# Of those in BEYOND many fail by waiting for what never comes. They wait this long, not WAIT_S: a
# vector that passes only later than this is found another day, so that a slow machine fails nothing.
PATIENCE_S = 0.5


def beyond(file: str) -> dict[str, str]:
    """name -> why the fake cannot do it."""
    return {name: reason for reason, names in BEYOND.get(file, {}).items() for name in names}


async def failure(vector: Vector, wait_s: float) -> str | None:
    async with FakeChatd() as fake:
        fake.resync_max = int(str(vector.settings.get("resync_entries_max", fake.resync_max)))
        try:
            await ServerRunner(fake.url, lambda user, _options: user, wait_s=wait_s).run(vector.steps)
        except Mismatch as e:
            return str(e)
        finally:
            fake.unsaid_repeats.clear()  # a vector may leave `retry` out: the SDK may not
    return None


async def failures(some: list[Vector], wait_s: float = WAIT_S) -> dict[str, str | None]:
    """By name. All at once: many only wait."""
    found = await asyncio.gather(*(failure(one, wait_s) for one in some))
    return {one.name: why for one, why in zip(some, found, strict=True)}


def test_what_is_beyond_the_fake_is_in_the_vectors() -> None:
    assert {(file, name) for file in BEYOND for name in beyond(file)} <= {
        (file, name) for file, vectors in VECTORS.items() for name in vectors
    }


@pytest.mark.parametrize("file", VECTORS)
async def test_the_fake_does_as_the_server(file: str) -> None:
    found = await failures([one for name, one in VECTORS[file].items() if name not in beyond(file)])
    failed = [f"{name}: {why}" for name, why in found.items() if why is not None]
    assert not failed, "\n" + "\n".join(failed)


@pytest.mark.parametrize("file", BEYOND)
async def test_what_the_fake_can_do_is_not_called_beyond_it(file: str) -> None:
    found = await failures([VECTORS[file][name] for name in beyond(file)], PATIENCE_S)
    passed = [name for name, why in found.items() if why is None]
    assert not passed, "the fake can do these now, take them out of BEYOND:\n" + "\n".join(passed)
