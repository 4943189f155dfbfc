"""What the SDK gives to an app: entries, events, pages, and what they are made of. Pure.

frames.py reads them from the server's frames. docs/client.md names each field.

All times are integer milliseconds since 1970 UTC by the server's database. `c` names a conversation
and is opaque.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from chatd import protocol

# `unknown`: a kind or a state of a later version of the protocol.
Kind: TypeAlias = Literal["message", "edit", "delete", "unknown"]
PresenceState: TypeAlias = Literal["online", "away", "offline", "hidden", "unknown"]
LineState: TypeAlias = Literal["connecting", "online", "offline", "stopped"]

KINDS: Final[tuple[Kind, ...]] = ("message", "edit", "delete")
PRESENCE_STATES: Final[tuple[PresenceState, ...]] = ("online", "away", "offline", "hidden")


class Owner(Protocol):
    """The client that gave an entry, as its methods need it."""

    def done(self, entry: Entry) -> None: ...

    async def answer(self, entry: Entry, body: str, n: int) -> Sent: ...


class _Given:
    """An entry's way back to the client that gave it: no field, so copies and JSON have none."""

    __slots__ = ("_owner",)


@dataclass(frozen=True, slots=True)
class Entry(_Given):
    """One line of a conversation's log.

    `own`: this user made it, here or on another device. `ref`: the message that an edit or delete
    changes. A message may include its later changes: `rev` is the seq of its last
    change, `edited` or `deleted` the time of it, `body` None if deleted. `epoch`: of the log that
    `c` and `seq` are of.
    """

    c: str
    peer: str
    seq: int
    ts: int
    own: bool
    kind: Kind
    body: str | None
    ref: int | None = None
    rev: int | None = None
    edited: int | None = None
    deleted: int | None = None
    cid: str | None = None
    epoch: str = ""

    def given_by(self, owner: Owner) -> None:
        """Name the client that gives this entry to the app."""
        object.__setattr__(self, "_owner", owner)

    async def reply(self, body: str, *, n: int = 0) -> Sent:
        """Send the n-th answer to this entry. An entry that is handled twice is answered once.

        The answer that was stored first stands, whatever its words. Raises what `Client.send` does.
        """
        return await self._client().answer(self, body, n)

    def done(self) -> None:
        """Say that this entry is handled; for `entries(auto_done=False)`. Idempotent."""
        self._client().done(self)

    def _client(self) -> Owner:
        owner: Owner | None = getattr(self, "_owner", None)
        if owner is None:
            raise RuntimeError("this entry was not given by Client.entries or a handler")
        return owner


@dataclass(frozen=True, slots=True)
class Sent:
    """Where a send, edit or delete stands in the log.

    `dup`: it had been stored before this answer was asked for.
    """

    c: str
    seq: int
    ts: int
    dup: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """How far `user` has got in a conversation. Both numbers only rise."""

    c: str
    peer: str
    user: str
    delivered: int
    read: int


@dataclass(frozen=True, slots=True)
class Presence:
    """`state` is `online`, `away`, `offline`, `hidden`, or `unknown` for one of a later version.

    `seen`: when the user was last seen, where the server says so.
    """

    user: str
    state: PresenceState
    v: int
    seen: int | None = None


@dataclass(frozen=True, slots=True)
class Typing:
    """`user` is typing. Ends 6 s after the last of these, or with an entry of that user."""

    c: str
    user: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Word from the server about itself. `drain`: it goes away, and the client moves by itself."""

    kind: str
    retry_ms: int | None


@dataclass(frozen=True, slots=True)
class Reset:
    """The log is another one (a failover, a restore from a backup): any `c` and `seq` of before is
    void.

    With `c`: that conversation has lost entries that this client was given, or goes on at its head
    (docs/client.md).
    """

    c: str | None
    peer: str | None


@dataclass(frozen=True, slots=True)
class Unsent:
    """A send that nobody waits for any more (its await was cancelled, or it comes from a saved
    state) was refused for good.
    """

    peer: str
    cid: str
    kind: str
    body: str | None
    ref: int | None
    code: str
    msg: str


@dataclass(frozen=True, slots=True)
class Line:
    """How the connection stands.

    `connecting`: a try is under way. `online`: the welcome is complete. `offline`: it was lost, or
    a try failed, because of `reason`; the next try is in `wait_s` seconds. `stopped`: there is no
    next one. `detail`: what the operating system or the server said.
    """

    state: LineState
    reason: str = ""
    wait_s: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The server gave an entry that cannot be read. It is passed over; what follows it is given."""

    c: str
    peer: str
    seq: int


@dataclass(frozen=True, slots=True)
class CatchUpFailed:
    """What follows `after` in this conversation cannot be had now, because of `code`.

    It is asked for again, after longer and longer waits. The other conversations go on.
    """

    c: str
    peer: str
    after: int
    code: str
    msg: str = ""


Event: TypeAlias = Receipt | Presence | Typing | Notice | Reset | Unsent | Line | Unreadable | CatchUpFailed


@dataclass(frozen=True, slots=True)
class ConversationItem:
    """One conversation in a list.

    `delivered`, `read` are this user's cursors. `page`, `reset`: see section 3 of docs/protocol.md.
    """

    c: str
    peer: str
    head: int
    floor: int
    ts: int
    delivered: int
    read: int
    peer_delivered: int
    peer_read: int
    unread: int
    open: bool
    page: bool = False
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """An unbroken run of a log, in rising order.

    `more`: there are further ones in the direction asked for. `unreadable`: seqs of entries that
    were left out, because they cannot be read.
    """

    c: str
    entries: tuple[Entry, ...]
    more: bool
    head: int
    floor: int
    unreadable: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ConversationPage:
    """Conversations, the latest entry first. `cursor` asks for the next page; None: no more."""

    items: tuple[ConversationItem, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server allows; the defaults hold until a welcome says otherwise."""

    frame_bytes: int = protocol.FRAME_BYTES_MAX
    body_bytes: int = protocol.BODY_BYTES_MAX
    messages: int = 10
    per_ms: int = 5_000
    watch: int = protocol.WATCH_MAX
    history: int = protocol.HISTORY_MAX
    edit_ms: int = 900_000


@dataclass(frozen=True, slots=True)
class Welcome:
    """All pages of a welcome in one.

    `exp_ms`: when the token ends, by the server's clock, which stood at `ts`.
    """

    user: str
    epoch: str
    ts: int
    exp_ms: int | None
    limits: Limits
    items: tuple[ConversationItem, ...]
    presence: tuple[Presence, ...]
    since: str | None
