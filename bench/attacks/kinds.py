"""The kinds of attack, each a row: what it sends, how fast, and with which codes it may be closed.

Pure.

A kind is of a stranger (no token: `hello` None or forged) or of a user with a token. Users' kinds
go at one of two paces: as fast as the kernel takes it, which ends in a close; or as fast as a
connection may stay (`ALLOWED`), which goes on for as long as it likes and is often the dearer one.
Add a row for each new request, and for each thing that a client makes the server do.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from bench import wire

CONT: Final = 0x00
ALLOWED: Final = 95.0  # frames a second: the limit is 100
BURST: Final = 300  # at once before that: the limit is 400
WATCHED: Final = 200
DEVICES: Final = 10
NO_CODE: Final = 1006
SAME_CID: Final = "5ad5ad5a-0000-4000-8000-000000000000"
EDIT_EACH: Final = 50  # frames: 1.9 edits a second, where 2 are allowed
HEAD_LINES: Final = 100  # of 158 bytes: a head that is just let in
HEAD_END: Final = b"\r\n\r\n"


class Leaves(enum.Enum):
    """When an attacker ends its connection by itself, and comes again."""

    NEVER = "never"
    SHAKEN = "shaken"
    HELLO = "hello"  # with its hello on the way


class Who(NamedTuple):
    """An attacker's connection.

    `peers`: users with whom it has an open conversation; `deep`, `edited`: names of long
    conversations of its own.
    """

    user: str
    device: str
    token: str
    host: str
    port: int
    peers: list[str]
    deep: str
    edited: str


Make: TypeAlias = Callable[[Who], bytes]
Frames: TypeAlias = Callable[[Who, int, int], bytes]  # so many frames, the first with this id


def upgrade(who: Who) -> bytes:
    return wire.upgrade(who.host, who.port, "/ws")


def hello(who: Who) -> bytes:
    return wire.request("hello", 1, 0, v=1, token=who.token, device=who.device)


def forged(who: Who) -> bytes:
    return wire.request("hello", 1, 0, v=1, token=who.token[:-6] + "AAAAAA", device=who.device)


class Kind(NamedTuple):
    """`codes`: closes that are right. `must_end`: it has to be closed at least once. `times`:
    connections where one is asked for, 0 if there are none at all; `of_user`: so many of them are
    devices of one user. `seconds`: it takes at least so long to show.
    """

    name: str
    what: str
    codes: frozenset[int]
    must_end: bool = False
    head: Make | None = upgrade
    shakes: bool = True
    hello: Make | None = None
    first: Make | None = None
    frames: Frames | None = None
    per_s: float | None = None
    burst: int = 0
    batch: int = 64  # frames a write, at full speed
    reads_after_s: float = 0.0  # it takes nothing before
    answers_pings: bool = True
    stays: bool = False  # goes on after the server's close
    leaves: Leaves = Leaves.NEVER
    times: int = 1
    of_user: int = 1
    seconds: float = 0.0
    admin: bool = False


# ---- what they send ------------------------------------------------------------------------------


def same(frame: bytes) -> Frames:
    """The same frame again and again."""
    return lambda who, id, n: frame * n


def each(t: str, keys: Callable[[Who, int], dict[str, object]] = lambda who, id: {}) -> Frames:
    """Requests of a type, with rising ids. `keys` is given the id."""
    return lambda who, id, n: b"".join(wire.request(t, i, 0, **keys(who, i)) for i in range(id, id + n))


def _peer(who: Who, id: int) -> dict[str, object]:
    return {"to": who.peers[id % len(who.peers)]}


def _cid() -> str:
    return str(uuid.uuid4())


def _send(who: Who, id: int) -> dict[str, object]:
    return {**_peer(who, id), "cid": _cid(), "body": "x" * 2_000}


def _again(who: Who, id: int) -> dict[str, object]:
    """The same cid, as if its `ok` had been lost: looked for in all of the log."""
    return {"to": who.peers[0], "cid": SAME_CID, "body": "again", "retry": True}


def _retried(who: Who, id: int) -> dict[str, object]:
    """Messages that are each sent ten times, whatever the answer is."""
    return {"to": who.peers[1], "cid": f"{SAME_CID[:-6]}{id // 10:06d}", "body": "again"}


def _stranger(who: Who, id: int) -> dict[str, object]:
    return {"to": f"{who.user}-{who.device}-{id}-{_cid()[:8]}", "cid": _cid(), "body": "hello"}


def _edit(who: Who, id: int) -> dict[str, object]:
    return {"c": who.edited, "cid": _cid(), "ref": 1, "body": f"{id} ".ljust(2_000, "x")}


def _watched(who: Who, id: int) -> dict[str, object]:
    """Two lists in turns, with a few who are there."""
    return {"users": [*who.peers, *(f"nobody-{id % 2}-{n}" for n in range(WATCHED - len(who.peers)))]}


def _typing_and_cursors(who: Who, id: int, n: int) -> bytes:
    return b"".join(
        wire.request(("typing", "ack", "read")[i % 3], i, 0, **_peer(who, i), **({"seq": 2} if i % 3 else {}))
        for i in range(id, id + n)
    )


def _grow(who: Who, id: int, n: int) -> bytes:
    """Edits of one message, and pages of its conversation between them."""
    return b"".join(
        wire.request("edit", i, 0, **_edit(who, i))
        if i % EDIT_EACH == 0
        else wire.request("history", i, 0, c=who.edited, limit=100)
        for i in range(id, id + n)
    )


def _hoard(who: Who) -> bytes:
    return b"".join(wire.request("history", i, 0, c=who.deep, limit=100) for i in range(2, 18))


def _unreadable_then_pongs(who: Who) -> bytes:
    return wire.frame(b"{", 0) * 30


def _close(who: Who) -> bytes:
    return wire.frame((1000).to_bytes(2), 0, wire.CLOSE)


def _endless_head(who: Who, id: int, n: int) -> bytes:
    return b"x" * n


def _big_head(who: Who) -> bytes:
    """Just short enough."""
    return upgrade(who)[:-2] + b"".join(b"X-Filler-%03d: %b\r\n" % (n, b"x" * 142) for n in range(HEAD_LINES)) + b"\r\n"


def _noise(who: Who) -> bytes:
    """A client of another protocol: the beginning of TLS."""
    return b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(128, 256)) * 4 + HEAD_END


def _page(who: Who) -> bytes:
    return f"GET / HTTP/1.1\r\nHost: {who.host}:{who.port}\r\nConnection: close\r\n\r\n".encode()


def _metrics(who: Who) -> bytes:
    return f"GET /metrics HTTP/1.1\r\nHost: {who.host}:{who.port}\r\n\r\n".encode()


PING: Final = wire.frame(b"", 0, wire.PING)
PONG: Final = wire.frame(b"", 0, wire.PONG)
LONE: Final = frozenset({NO_CODE})
RATE: Final = frozenset({4008})
# One that was closed comes again at once, and is over the rate of hellos soon
HELLO_RATE: Final = frozenset({4008, 4009})


def _allowed(name: str, what: str, frames: Frames, **more: object) -> Kind:
    """As fast as a connection may stay."""
    return Kind(name, what, HELLO_RATE, hello=hello, frames=frames, per_s=ALLOWED, burst=BURST, **more)  # type: ignore[arg-type]


def _flood(name: str, what: str, frames: Frames, **more: object) -> Kind:
    """As fast as the kernel takes it."""
    return Kind(name, what, HELLO_RATE, must_end=True, hello=hello, frames=frames, **more)  # type: ignore[arg-type]


KINDS: Final = (
    Kind("none", "nobody attacks: what to compare with", frozenset(), times=0),
    # ---- strangers
    Kind("pongs", "six-byte pongs before hello", RATE, must_end=True, frames=same(PONG), batch=2_000),
    Kind(
        "fragments",
        "a message in one-byte fragments, before hello",
        RATE,
        must_end=True,
        first=lambda who: wire.frame(b"x", 0, 0x01),
        frames=same(wire.frame(b"x", 0, CONT)),
        batch=2_000,
    ),
    Kind(
        "after-close",
        "unreadable frames, then pongs after our close",
        frozenset({4000}),
        True,
        first=_unreadable_then_pongs,
        frames=same(PONG),
        stays=True,
        seconds=5.0,
        batch=2_000,
    ),
    Kind(
        "silent",
        "connections without a hello, 2,000 held",
        frozenset({4003, 4009, NO_CODE}),
        True,
        answers_pings=False,
        times=2_000,
        seconds=8.0,
    ),
    Kind(
        "dribble",
        "the head of an upgrade byte by byte, on 300 connections",
        LONE,
        True,
        head=lambda who: upgrade(who)[:-2] + b"X-Filler: ",
        shakes=False,
        frames=_endless_head,
        per_s=50.0,
        times=300,
        seconds=8.0,
    ),
    Kind("heads", "upgrades with a head of 16 KB, left at once", LONE, head=_big_head, leaves=Leaves.SHAKEN, times=4),
    Kind("noise", "what is no HTTP", LONE, head=_noise, times=8),
    Kind("upgrades", "upgrades, left at once", LONE, leaves=Leaves.SHAKEN, times=8),
    Kind("pages", "the page by plain HTTP", LONE, head=_page, times=8),
    Kind("admin", "metrics from the admin port", LONE, head=_metrics, times=8, admin=True),
    Kind("closes", "upgrades and a close", frozenset({1000, NO_CODE}), True, first=_close, times=8),
    Kind(
        "compressed",
        "frames with a bit of compression",
        frozenset({1002}),
        True,
        first=lambda who: wire.frame(b"x", 0, wire.TEXT | 0x40),
        times=8,
    ),
    Kind(
        "forged-hellos",
        "hellos with a token that nobody signed",
        frozenset({4001, 4009, NO_CODE}),
        True,
        hello=forged,
        times=8,
    ),
    # ---- users: connections
    Kind("hello-drops", "hellos, left at once", frozenset({4009, NO_CODE}), hello=hello, leaves=Leaves.HELLO, times=8),
    Kind(
        "hellos",
        "the same device again and again",
        frozenset({4004, 4009, NO_CODE}),
        True,
        hello=hello,
        times=8,
        of_user=10_000,
    ),
    # ---- users: floods
    _flood("ws-pings", "WebSocket pings", same(PING), batch=2_000),
    _flood("pings", "requests in large segments", each("ping"), batch=500),
    _flood("sends", "messages of 2 KB", each("send", _send)),
    _flood("unknown", "requests of a type that is none", each("nonsense")),
    _flood("retries", "each message ten times, in spite of retry_ms", each("send", _retried)),
    # ---- users: as fast as they may stay
    _allowed("errors", "requests that are refused", each("history", lambda who, id: {"c": "999999", "limit": 100})),
    _allowed("reads", "the largest pages of history", each("history", lambda who, id: {"c": who.deep, "limit": 100})),
    _allowed("lists", "the largest pages of the list", each("conversations", lambda who, id: {"limit": 100})),
    _allowed(
        "bad-cursors",
        "pages of the list from nowhere",
        each("conversations", lambda who, id: {"limit": 100, "cursor": "1.x"}),
    ),
    _allowed("grown", "one message edited again and again, and its pages", _grow),
    _allowed("edits", "edits over the rate", each("edit", _edit)),
    _allowed("dups", "a message that is there, again and again", each("send", _again)),
    _allowed("strangers", "messages to ever new users", each("send", _stranger)),
    _allowed("watch-churn", "lists of 200 watched users, in turns", each("watch", _watched)),
    _allowed(
        "typing",
        "ten devices type",
        each("typing", lambda who, id: {"to": who.peers[0]}),
        times=DEVICES,
        of_user=DEVICES,
    ),
    _allowed(
        "typing-many", "ten devices type to many, ack and read", _typing_and_cursors, times=DEVICES, of_user=DEVICES
    ),
    _allowed(
        "presence",
        "ten devices flap",
        each("presence", lambda who, id: {"state": "away" if id % 2 else "online"}),
        times=DEVICES,
        of_user=DEVICES,
    ),
    _allowed("refreshes", "new tokens", each("refresh", lambda who, id: {"token": who.token})),
    _allowed("skips", "cids given up", each("skip", lambda who, id: {**_peer(who, id), "cid": _cid()})),
    Kind(
        "deaf",
        "refused requests at full speed, and reads no answer",
        frozenset({4006, 4008, 4009, NO_CODE}),
        must_end=True,
        hello=hello,
        frames=each("nonsense"),
        reads_after_s=21.0,
        answers_pings=False,
        seconds=24.0,
    ),
    Kind(
        "hoard",
        "ten devices ask for pages, and read nothing",
        frozenset({4006, 4007, NO_CODE}),
        hello=hello,
        first=_hoard,
        reads_after_s=21.0,
        answers_pings=False,
        must_end=True,
        times=DEVICES,
        of_user=DEVICES,
        seconds=24.0,
    ),
)
BY_NAME: Final = {kind.name: kind for kind in KINDS}
