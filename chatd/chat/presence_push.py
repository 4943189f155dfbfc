"""Presence to sessions: a change to the sessions that watch, a status to a session that asks.

Which user may see which is decided here.

    Presence ──Change──► announce ──► Pace ──► sessions here that watch the user and may see them
    hello, `watch` ──► snapshot, statuses ──► the statuses that a session starts with
    Delivery: both have sent ──► conversation_opened ──► sessions that watched in vain until then

Presence is watched, not broadcast, and visible once both users have sent in their conversation. A
status has a version, and a newer one replaces an older one: a push that crosses a snapshot does no
harm. Who is online is in presence.py; last-seen times of users who are not in memory are read from
the store.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from chatd import errors, protocol
from chatd.core.coalescing import PRESENCE_BURST, PRESENCE_S, Pace
from chatd.core.conversations import Registry, pair_of
from chatd.core.session import Session, State, User
from chatd.ids import UserId
from chatd.loop.alarm import Alarm
from chatd.metrics import Metrics
from chatd.postgres.rows import ConvRow
from chatd.presence import Change, Presence, Status
from chatd.store import Store
from chatd.wire.frames import encode_text


def may_see(watcher: Session, user: UserId) -> bool:
    """Whether both have sent in their conversation; always true for oneself.

    Of a conversation that is not in memory, `visible` says so: see `PresencePush.learn`.
    """
    me = watcher.user
    if me is None:
        return False
    if me.id == user:
        return True
    conv = me.peers.get(user)
    return (conv is not None and conv.open) or is_in(user, me.visible)


def is_in(user: UserId, users: tuple[UserId, ...]) -> bool:
    """Whether a user is one of these, which are in order."""
    at = bisect_left(users, user)
    return at < len(users) and users[at] == user


class PresencePush:
    """Call `tick` at the time that `alarm` is given, and at `next_due` after a session's end.

    `now`: seconds, monotonic; `now_ms`: since 1970; `spawn` starts a watched task.
    """

    def __init__(
        self,
        presence: Presence,
        registry: Registry,
        store: Store,
        metrics: Metrics,
        *,
        now: Callable[[], float],
        now_ms: Callable[[], int],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        alarm: Alarm,
    ) -> None:
        self._presence, self._registry, self._store, self._metrics = presence, registry, store, metrics
        self._now, self._now_ms, self._spawn, self._alarm = now, now_ms, spawn, alarm
        self._pace: Pace[UserId, Change] = Pace(PRESENCE_S, PRESENCE_BURST)

    # ---- who may see whom ------------------------------------------------------------------------

    async def learn(
        self, session: Session, users: Iterable[UserId], rows: Iterable[ConvRow] = (), *, is_all: bool = False
    ) -> None:
        """Learn which of the users that a session watches it may see; it watches them already.

        What it may see it always will. `rows`: conversations of its user that were just read,
        `is_all`: all there are. What neither they nor memory tell is asked of the database. Raises
        Unavailable, Overloaded.
        """
        me = session.user
        assert me is not None
        if self._registry.holds_all:
            return  # memory tells
        asked = {user for user in users if user != me.id and not is_in(user, me.visible)}
        seen = {user for user in asked if (conv := me.peers.get(user)) is not None and conv.open}
        for row in rows if asked else ():
            if (peer := row.peer(me.id)) in asked:
                asked.discard(peer)
                if row.open:
                    seen.add(peer)
        asked -= seen
        if asked and not is_all:
            pairs = {pair_of(me.id, user): user for user in asked}
            turns = self._store.hello_turns if session.state is State.OPENING else self._store.read_turns
            async with turns.turn(me.id):
                seen |= {pairs[pair] for pair in await self._store.open_pairs(list(pairs))}
        self._show(me, seen)

    def _show(self, user: User, seen: set[UserId]) -> None:
        """From now on the user sees these, too."""
        if not seen <= set(user.visible):
            watched = {name for session in user.sessions.values() for name in session.watching}
            user.visible = tuple(sorted(watched & (seen | set(user.visible))))

    # ---- changes ---------------------------------------------------------------------------------

    def announce(self, change: Change | None) -> None:
        """Push a status to the sessions that watch it and may see it.

        At most one a second of a user; the last one is always pushed.
        """
        if change is None:
            return
        self._metrics.presence_changes += 1
        if self._presence.watchers(change.user):
            if self._pace.offer(change.user, change, self._now()):
                self._push_status(change)
            self._alarm.by(self._pace.next_due())

    def _push_status(self, change: Change) -> None:
        frame = encode_text(protocol.frame("presence", **change.facts()))
        for watcher in self._presence.watchers(change.user):
            assert isinstance(watcher, Session)
            if watcher.state is State.LIVE and may_see(watcher, change.user):
                self._metrics.presence_pushes += 1
                watcher.sink.send(frame)

    def conversation_opened(self, a: UserId, b: UserId) -> None:
        """Both have sent: sessions that watch the other user see them from now on."""
        for user, watched in ((a, b), (b, a)):
            holder = self._registry.users.get(user)
            watchers = [] if holder is None else [one for one in holder.sessions.values() if watched in one.watching]
            if watchers and holder is not None and not self._registry.holds_all:
                self._show(holder, {watched})
            if watchers and self._presence.status(watched) is None:
                self._spawn(self._push_away(watchers, watched))
            else:
                self._push_first_status(watchers, watched, None)

    async def _push_away(self, watchers: list[Session], watched: UserId) -> None:
        seen = None
        with contextlib.suppress(errors.Refused):
            seen = (await self._store.seen([watched])).get(watched)
        self._push_first_status(watchers, watched, seen)

    def _push_first_status(self, watchers: list[Session], watched: UserId, seen_ms: int | None) -> None:
        frame = encode_text(protocol.frame("presence", **self.status(watched, seen_ms).facts()))
        for session in watchers:
            if watched in session.watching and session.state is State.LIVE:
                session.sink.send(frame)

    def tick(self, is_opening: Callable[[UserId], bool]) -> None:
        """Push offline statuses whose grace time is over, and what was held back.

        `is_opening`: a session of the user is in its hello.
        """
        for change in self._presence.due(self._now(), self._now_ms(), is_opening):
            self.announce(change)
        for _, change in self._pace.due(self._now(), self._stands):
            self._push_status(change)
        self._metrics.presence_merged = self._pace.merged

    def _stands(self, change: Change) -> bool:
        """Whether the user still has this status: changes that nobody watched replaced nothing.

        Who watches since then has had a snapshot, perhaps with a lower version than this.
        """
        now = self._presence.status(change.user)
        return change.status is (Status.OFFLINE if now is None else now.status)

    def next_due(self) -> float | None:
        """When `tick` is due: at the end of a grace time, or of the pause between two pushes.

        None: nothing is due.
        """
        return min((at for at in (self._presence.next_due(), self._pace.next_due()) if at is not None), default=None)

    # ---- the statuses that a session starts with -------------------------------------------------

    async def snapshot(self, session: Session) -> list[dict[str, object]]:
        """The statuses of all users that the session watches, in the form of the wire."""
        users = session.watching
        seen = await self.last_seen(session, users)
        return self.statuses(session, users, seen)

    def statuses(
        self, session: Session, users: Iterable[UserId], seen: Mapping[UserId, int | None]
    ) -> list[dict[str, object]]:
        """Statuses as of now: send them in this turn of the loop, before a change is pushed."""
        return [self._status_for(session, user, seen.get(user)).facts() for user in users]

    def unseen(self, session: Session, users: Iterable[UserId], seen: Mapping[UserId, int | None]) -> list[UserId]:
        """Users that are away and visible, and whose last-seen time is not in `seen`."""
        return [
            user
            for user in users
            if user not in seen and self._presence.status(user) is None and may_see(session, user)
        ]

    async def last_seen(self, session: Session, users: Iterable[UserId]) -> dict[UserId, int | None]:
        """When users that are away were last seen, in ms since 1970, from the database.

        None: the database does not know. Users that leave during the read are read, too.
        """
        seen: dict[UserId, int | None] = {}
        turns = self._store.hello_turns if session.state is State.OPENING else self._store.read_turns
        while away := self.unseen(session, users, seen):  # each user is read once
            assert session.user is not None
            async with turns.turn(session.user.id):
                found = await self._store.seen(away)
            seen.update((user, found.get(user)) for user in away)
        return seen

    async def seen_since(self, session: Session, shown: list[dict[str, object]]) -> Mapping[UserId, int | None]:
        """When users that have left since the snapshot `shown` were last seen."""
        known = {facts["user"] for facts in shown if facts["state"] == Status.OFFLINE.value}
        try:
            return await self.last_seen(session, [user for user in session.watching if user not in known])
        except errors.Retryable:
            return {}

    def push_changed(self, session: Session, shown: list[dict[str, object]], seen: Mapping[UserId, int | None]) -> None:
        """Push what changed since the snapshot `shown`, as the session goes live.

        Until then no change was pushed to it.
        """
        before = {facts["user"]: facts["state"] for facts in shown}
        for user in session.watching:
            now = self._status_for(session, user, seen.get(user))
            if before.get(user) != now.status.value:
                session.sink.send(encode_text(protocol.frame("presence", **now.facts())))

    def _status_for(self, session: Session, user: UserId, seen_ms: int | None) -> Change:
        if not may_see(session, user):
            return Change(user, Status.HIDDEN, 0, None)
        return self.status(user, seen_ms)

    def status(self, user: UserId, seen_ms: int | None) -> Change:
        """A user's status as of now, with a version just below now.

        It is above every version that the client got before of another status, also from other
        nodes, and below the next one.
        """
        change = self._presence.status(user)
        if change is None:
            return self.offline(user, seen_ms)
        return change._replace(v=max(change.v, self._presence.unchanged_v(self._now_ms())))

    def offline(self, user: UserId, seen_ms: int | None) -> Change:
        """The status of a user who is not in memory."""
        return Change(user, Status.OFFLINE, self._presence.unknown_v(self._now_ms()), seen_ms)
