"""Holds in memory: users, their sessions, and the conversations between users. Pure.

    Registry ── users ──► User ── sessions ──► Session (by device id)
        │                  └──── peers ─────► Conversation (by the other participant)
        └─── convs ──► Conversation (by id), held as long as one of its users is

A conversation that has no entry yet is not in its users' listings. If one of its users is held
later, `Registry` links the two, since the listing does not.

A user is held from the first hello until `LINGER_S` after the last session ended, or after that
hello if it failed. So limits outlive a reconnect.

Which conversations of a held user are held depends on whether other nodes write to the log
(docs/decisions/0061):

- A node among others holds all of them (`holds_all`). So it can tell of every entry that it hears
  of whether it has delivered those before it.
- A node alone holds those in use. A request that names another one raises `NotHeld`, is loaded by
  chat/loading.py, and is carried out then. What nobody has used for one to two minutes is let go
  (`let_go_unused`). Nobody else writes, so the log of what is not held has no entry that was not
  delivered; where that cannot be proven (`loaded`), the sessions that may lack some are closed.

One conversation costs some 480 bytes, shared by both users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from chatd import errors
from chatd.core.conversation import Conversation
from chatd.core.let_go import Delivered
from chatd.core.rate_limit import Penalty, SlidingWindow
from chatd.core.session import State
from chatd.core.unused import Unused
from chatd.ids import ConvId, DeviceId, UserId
from chatd.unicode_ids import new_user_id

if TYPE_CHECKING:
    from chatd.core.session import Session, User
    from chatd.core.snapshot import Snapshot

LINGER_S: Final = 60.0

# Users who are no longer held but whose limits still count something: mostly conversations that
# they opened within the hour. Past this bound the one gone longest is forgotten. To have their own
# count forgotten, a user would need this many others who open conversations. Some 300 bytes each,
# 1.4 KB with all 100 of the hour.
KEPT_MAX: Final = 10_000


def check_name(user: User, named: UserId, field: str = "to") -> None:
    """Check a name that a user gives as a peer: without a conversation, it must be a valid new id.

    Raises BadField.
    """
    if named in user.peers or named == user.id:
        return
    try:
        new_user_id(named)
    except ValueError as e:
        raise errors.BadField(f"`{field}` is no user id: {e}", field=field) from None


def pair_of(one: UserId, other: UserId) -> tuple[UserId, UserId]:
    """Two users in the order of their bytes, as the conversation has them."""
    return (one, other) if one.encode() <= other.encode() else (other, one)


class NotHeld(Exception):
    """The conversation that a request names is not in memory: `key` is its id, or the peer."""

    def __init__(self, key: ConvId | UserId) -> None:
        super().__init__("a conversation is not in memory")
        self.key = key


class Kept(NamedTuple):
    """The limits of a user who is not held, and until when they count something (seconds)."""

    until: float
    window: SlidingWindow
    penalty: Penalty
    new_convs: SlidingWindow


def _forget_listed(user: User) -> None:
    """No session is left that was listed any of the user's conversations."""
    user.recent = user.snapshot = user.let_go = None
    user.unproven, user.visible = 0, ()


class Registry:
    """The maps, and the rules that decide which users and conversations are held.

    `holds_all`: all conversations of a held user are.
    """

    def __init__(self, *, holds_all: bool = True) -> None:
        self.holds_all = holds_all
        # What was looked for a moment ago, for (user, key): what is not in memory does not exist
        self.sought: tuple[UserId, ConvId | UserId] | None = None
        self._unused = Unused()
        self._most = 0  # conversations since the map was last copied
        self.users: dict[UserId, User] = {}
        self.convs: dict[ConvId, Conversation] = {}
        self.sessions = 0  # of all users
        # The conversation of the last known entry, held or not: a log that was set back lacks it.
        self.latest: Conversation | None = None
        # Gets the id of each conversation that is held from now on; None: nobody asks
        self.on_hold: Callable[[ConvId], None] | None = None
        self._idle: dict[UserId, None] = {}  # users without a session, longest idle first
        self._busy: list[Conversation] = []  # had pending work when their last user was dropped
        # Conversations without an entry, by a participant who is not held
        self._empty: dict[UserId, dict[ConvId, Conversation]] = {}
        self._kept: dict[UserId, Kept] = {}  # the longest gone first

    def add_user(self, user: User, now: float) -> None:
        """Hold a user from now on.

        If the first hello fails before `attach`, the user is released as after a last session.
        """
        assert user.id not in self.users
        self.users[user.id] = user
        user.idle_since = now
        self._idle[user.id] = None
        for conv in self._empty.pop(user.id, {}).values():
            self.link(user, conv)
        if (kept := self._kept.pop(user.id, None)) is not None:
            _, user.window, user.penalty, user.new_convs = kept

    def find(self, user: User, c: ConvId | None, to: UserId | None) -> Conversation:
        """The conversation that a request names by its id or by the peer, if the user is in it.

        Raises NoConversation, BadField; NotHeld if it must be loaded to tell.
        """
        if c is not None:
            conv = self.convs.get(c)
            if conv is None:
                self.need(user, c)
            elif (conv.a == user.id or conv.b == user.id) and (conv.head or conv.pending or conv.gap is not None):
                conv.is_used = True
                return conv
        elif to is not None:
            conv = user.peers.get(to)
            if conv is not None:
                conv.is_used = True
                return conv
            self.need(user, to)
            check_name(user, to)
        raise errors.NoConversation("no such conversation of yours")

    def need(self, user: User, key: ConvId | UserId) -> None:
        """Raise NotHeld if there may be such a conversation, although it is not in memory."""
        if not self.holds_all and self.sought != (user.id, key):
            raise NotHeld(key)

    def attach(self, user: User, device: DeviceId, session: Session) -> None:
        """Make this the session of the device, in place of an older one."""
        self.sessions += device not in user.sessions
        user.sessions[device] = session
        user.idle_since = None
        self._idle.pop(user.id, None)

    def detach(self, user: User, device: DeviceId, session: Session, now: float) -> None:
        """Take out a session that ended; nothing if a newer one of its device replaced it.

        `now`: seconds; the user's `LINGER_S` begins then if no session is left.
        """
        if user.sessions.get(device) is session:
            del user.sessions[device]
            self.sessions -= 1
        if not user.sessions:
            user.idle_since = now
            _forget_listed(user)
            self._idle.pop(user.id, None)
            self._idle[user.id] = None

    def fits(self, id: ConvId, a: UserId, b: UserId) -> bool:
        """True if this can be a conversation of the log that is in memory.

        Within one log an id belongs to one pair for ever, and a pair has one id.
        """
        if (conv := self.convs.get(id)) is not None:
            return conv.a == a and conv.b == b
        held = ((self.users.get(a), b), (self.users.get(b), a))
        return all(user is None or (conv := user.peers.get(peer)) is None or conv.id == id for user, peer in held)

    def hold(self, id: ConvId, a: UserId, b: UserId) -> Conversation:
        """The conversation in memory, made if it is new, and linked to its users who are held.

        The caller must have checked that it `fits`.
        """
        conv = self.convs.get(id)
        assert conv is None or (conv.a == a and conv.b == b), "two pairs would share one log"
        if conv is None:
            one, other = self.users.get(a), self.users.get(b)
            # Their own names, not those of each row: some 60 bytes each
            conv = self.convs[id] = Conversation(id, one.id if one else a, other.id if other else b)
            if self.on_hold is not None:
                self.on_hold(id)
            if one is None and other is None:
                self._busy.append(conv)  # the user who asked for it has left: the next `release` drops it
        self.link_both(conv)
        return conv

    def link_both(self, conv: Conversation) -> None:
        """Link a conversation to its users who are held.

        The others get it once they are held: by their listing, or from `_empty` if it has no entry.
        """
        for id in (conv.a, conv.b):
            if (user := self.users.get(id)) is not None:
                self.link(user, conv)
            elif not conv.head:
                self._empty.setdefault(id, {})[conv.id] = conv

    def link(self, user: User, conv: Conversation) -> None:
        user.peers[conv.peer(user.id)] = conv

    def touch(self, conv: Conversation) -> None:
        """Note that a conversation was loaded with entries that its users' orders lack."""
        for id in (conv.a, conv.b):
            if (user := self.users.get(id)) is not None and user.recent is not None:
                user.recent.touched[conv.id] = conv.ts

    def forget_conversations(self) -> None:
        """Drop all conversations, because the log is another one.

        The users stay, with their limits; the next hello of each reads their conversations.
        """
        self.convs.clear()
        self.latest = None
        self._busy.clear()
        self._empty.clear()
        for user in self.users.values():
            user.peers.clear()
            _forget_listed(user)
            user.loaded, user.early = False, None

    def raise_floors(self, floors: Iterable[tuple[ConvId, int]]) -> None:
        """Retention has dropped entries: those below its floor are gone from a conversation."""
        for conv_id, floor in floors:
            if (conv := self.convs.get(conv_id)) is not None:
                conv.floor = max(conv.floor, floor)

    def release(self, now: float) -> Iterable[UserId]:
        """Drop users idle for `LINGER_S`, and conversations without a held user.

        Gives the users dropped.
        """
        gone: list[UserId] = []
        for id in self._idle:
            user = self.users[id]
            assert user.idle_since is not None
            if user.idle_since > now - LINGER_S:
                break  # the dict is in order of idle_since
            gone.append(id)
        for id in gone:
            del self._idle[id]
            user = self.users.pop(id)
            self._keep(user, now)
            self._drop(user.peers.values())
        self._forget(now)
        if self._busy:
            busy, self._busy = self._busy, []
            self._drop(busy)
        return gone

    # ---- conversations that are not held all the time --------------------------------------------

    def listed(self, user: User, snapshot: Snapshot) -> None:
        """A session of the user gets what was listed in this snapshot."""
        if user.snapshot is None or snapshot.age < user.snapshot.age:
            user.snapshot = snapshot

    def loaded(self, conv: Conversation, xid: int, started: int) -> list[User]:
        """A conversation has been loaded; gives the users whose sessions may lack entries of it.

        `xid`: the transaction that wrote its head, on the server that was started at `started`
        (core/snapshot.py). A user with sessions has all of it if they were listed since then, or if
        the conversation was let go with this head. What one of the two lacks says nothing about the
        other: their sessions began at different times.
        """
        unproven, conv.loaded_head = [], conv.head
        for id in {conv.a, conv.b} if conv.head else ():
            user = self.users.get(id)
            if user is None or not user.sessions:
                continue
            kept = None if user.let_go is None else user.let_go.take(conv.id)
            if kept is not None:
                conv.loaded_head = -1
            if user.snapshot is None:  # its first listing is under way, and will be compared with it
                user.unproven = max(user.unproven, xid)
            elif kept != conv.head and not user.snapshot.sees(xid, started):
                unproven.append(user)
        return unproven

    def let_go_unused(self, is_needed: Callable[[Conversation], bool]) -> int:
        """Let go of some of what nobody has used for a while; gives how many. Once a second.

        `is_needed`: whether another part works on it.
        """
        if self.holds_all:
            return 0
        gone = [conv for conv in self._unused.look(self.convs) if not self._is_at_work(conv) and not is_needed(conv)]
        self._most = max(self._most, len(self.convs))
        for conv in gone:
            for id in {conv.a, conv.b}:
                if (user := self.users.get(id)) is None:
                    continue
                user.peers.pop(conv.peer(id), None)
                if not user.peers:
                    user.peers = {}  # a dict that was emptied keeps its room
                if user.sessions and conv.head != conv.loaded_head:
                    user.let_go = user.let_go or Delivered()
                    user.let_go.put(conv.id, conv.head)
            self._delete(conv)
        if len(self.convs) < self._most // 4:
            self.convs, self._most = dict(self.convs), len(self.convs)
        return len(gone)

    def _is_at_work(self, conv: Conversation) -> bool:
        """Whether something goes on in it, or in a session that it concerns."""
        if conv.pending or conv.gap is not None:
            return True
        users = [user for id in (conv.a, conv.b) if (user := self.users.get(id)) is not None]
        return any(
            user.reads or any(one.state is State.OPENING or one.behind or one.held for one in user.sessions.values())
            for user in users
        )

    # ---- users who are no longer held ------------------------------------------------------------

    def _keep(self, user: User, now: float) -> None:
        # When all limits equal new ones
        until = max(user.window.empty_at, user.penalty.forgotten_at, user.new_convs.empty_at)
        if until > now:
            self._kept[user.id] = Kept(until, user.window, user.penalty, user.new_convs)

    def _forget(self, now: float) -> None:
        excess = len(self._kept) - KEPT_MAX
        over: list[UserId] = []
        for id, kept in self._kept.items():
            if len(over) >= excess and kept.until > now:
                break  # the others left later, and most of them count longer
            over.append(id)
        for id in over:
            del self._kept[id]

    def _drop(self, convs: Iterable[Conversation]) -> None:
        for conv in convs:
            if self.convs.get(conv.id) is not conv:
                continue
            if conv.a in self.users or conv.b in self.users:
                # The other user may be held and not loaded yet: linked, it is dropped with them.
                self.link_both(conv)
            elif conv.pending or conv.gap is not None:
                self._busy.append(conv)  # a second object for the same log would break its order
                self.link_both(conv)
            else:
                self._delete(conv)

    def _delete(self, conv: Conversation) -> None:
        del self.convs[conv.id]
        for id in (conv.a, conv.b):
            if (empty := self._empty.get(id)) is not None:
                empty.pop(conv.id, None)
                if not empty:
                    del self._empty[id]
