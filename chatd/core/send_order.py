"""Decides which entries of a session are written, probed or refused, in order and by rate. Pure.

This holds invariant 10 (docs/design.md): entries of a session and conversation keep their order.

    arrive ──► (waits: chat/send.py) ──► decide ──► the lane ──► overtaken ──► written
                                           │                         │
                            not_queued ◄───┘                         └──► failed | limited

Two maps by peer hold the order. `blocked`: after a retryable error to an entry, later ones in that
conversation are refused until its cid is sent again or given up. `cuts`: entries that were queued
behind one that failed in its lane must not be written either, not even once that one is sent again,
because it is then behind them. Request ids say which entry is earlier: an entry that was never
queued (too many frames, a full queue) must not stop earlier ones that were.

An entry over the rate is not refused at once: its cid may be known (a lost ok), and then the answer
is free. So it goes through the lane as a *probe*, which writes nothing. Entries that follow it
before its answer are probes as well.

An entry sent before the end of a `retry_ms` costs a penalty (`rate_limit.Penalty`), whatever its
cid. Entries that were already on their way cost none, so there must be a sign that the client has
read a refusal: it sends that cid again, or gives it up by `skip`. From then on every entry of the
session before that time is resent early.

Most sessions never have a failure. They share `UNTROUBLED`, which is never written to, and get an
order of their own (`Session.own_order`) when an entry first fails or is probed. So an idle session
costs one slot.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from chatd import errors
from chatd.core.rate_limit import EARLY_SLACK_S, Penalty, PenaltyVerdict, SlidingWindow
from chatd.ids import Cid, ConvId, UserId

# Conversations of a session that are blocked. Past this bound the longest blocked one is freed: the
# entries that were pipelined behind the failed one, which could break the order, arrived long ago.
# Without a bound, sends to ever new names would fill the memory.
BLOCKS_MAX: Final = 1_000
NAMELESS: Final = "\0"  # begins what stands for a peer who is not known yet


class Rated(Protocol):
    """The rate limit of entries of a user, over all sessions: `session.User`."""

    window: SlidingWindow
    penalty: Penalty


class Block(NamedTuple):
    """A conversation is blocked until this entry is sent again.

    `id`: the request that failed. `until`: the end of its `retry_ms`, in seconds; 0 if none.
    """

    cid: Cid
    id: int
    until: float


class Cut(NamedTuple):
    """Entries queued up to the request `id` are behind this cid, which failed."""

    id: int
    cid: Cid


class SendOrder:
    """The order of one session's entries.

    Maps are by peer. `id`: of an entry's request. `now`: seconds, never falling.
    """

    __slots__ = ("blocked", "cuts", "probing", "warned_until")

    def __init__(self) -> None:
        self.blocked: dict[UserId, Block] = {}  # the entry that must be sent again first
        self.cuts: dict[UserId, Cut] = {}  # queued entries that must not be written
        self.probing: dict[UserId, int] = {}  # probes without an answer so far
        # Until then the client is over the rate and knows it: it has reacted to a refusal.
        self.warned_until = 0.0

    # ---- on the way in ---------------------------------------------------------------------------

    def arrive(self, peer: UserId, cid: Cid, now: float) -> bool:
        """An entry has just been read. True if it is resent early.

        Early is before the end of a `retry_ms` that its sender has read. If the entry is the one
        that blocks the conversation, later ones may follow it. Raises Blocked if another one does.
        """
        if self.blocked and (block := self.blocked.get(peer)) is not None:
            if block.cid != cid:
                raise blocked(block.cid)
            self._answered(peer, block)
        return now < self.warned_until

    def decide(self, peer: UserId, cid: Cid, id: int, user: Rated, now: float) -> bool:
        """Decide about an entry that is about to be queued, after all earlier ones.

        True: write it; a slot of the rate is taken. False: only probe for it. Raises Blocked if an
        earlier entry has failed since it arrived. Report its outcome in the order of the lane: to
        `probed` if it was a probe, and to `limited` or `failed` if it wrote nothing; or to
        `not_queued` if the lane refuses it.
        """
        if self.blocked or self.cuts:
            self._recheck(peer, cid, id)
        if self.probing and peer in self.probing:
            return False
        return now >= user.penalty.until and user.window.take(now) == 0.0

    def _recheck(self, peer: UserId, cid: Cid, id: int) -> None:
        """Raise Blocked if an earlier entry has failed since this one arrived.

        A block of a later id does not count: that entry was refused after this one arrived.
        """
        if (waiting := self.overtaken(peer, id)) is not None:
            raise blocked(waiting)
        if (block := self.blocked.get(peer)) is not None and block.id < id:
            if block.cid != cid:
                raise blocked(block.cid)
            del self.blocked[peer]

    def overtaken(self, peer: UserId, id: int) -> Cid | None:
        """The cid of an earlier entry that failed since this one was queued, if any.

        Then this one must not be written.
        """
        if (cut := self.cuts.get(peer)) is not None and id <= cut.id:
            return cut.cid
        return None

    def skip(self, peer: UserId, cid: Cid) -> None:
        """The client gives up a cid: it no longer blocks its conversation."""
        if (block := self.blocked.get(peer)) is not None and block.cid == cid:
            self._answered(peer, block)

    def _answered(self, peer: UserId, block: Block) -> None:
        """The client has read the refusal that blocked a conversation: it reacts to it."""
        del self.blocked[peer]
        self.warned_until = max(self.warned_until, block.until - EARLY_SLACK_S)

    @property
    def has_nameless(self) -> bool:
        """Whether a conversation is blocked by its id alone."""
        return any(peer.startswith(NAMELESS) for peer in self.blocked)

    def known(self, conv: ConvId, peer: UserId) -> None:
        """A conversation that was blocked by its id alone is the one with this peer."""
        block = self.blocked.pop(nameless(conv), None)
        if block is not None and ((other := self.blocked.get(peer)) is None or block.id < other.id):
            self.blocked[peer] = block

    # ---- outcomes: only on a session's own order, never on UNTROUBLED ----------------------------

    def probe(self, peer: UserId) -> None:
        """An entry goes to the lane as a probe, and so do those after it until `probed`."""
        assert self is not UNTROUBLED
        self.probing[peer] = self.probing.get(peer, 0) + 1

    def probed(self, peer: UserId) -> None:
        """A probe has its answer, whatever it is."""
        self.probing[peer] -= 1
        if not self.probing[peer]:
            del self.probing[peer]

    def failed(self, peer: UserId, cid: Cid, id: int, read_upto: int, error: errors.Retryable) -> errors.Refused:
        """An entry in its lane was not written, or its outcome is unknown: block the conversation.

        `read_upto`: the last request of the session so far; entries queued up to there are behind
        this one. Gives the error to answer with: `error`, or Blocked if an earlier entry blocks.
        """
        return self._cut(peer, cid, id, read_upto) or error

    def limited(
        self, peer: UserId, cid: Cid, id: int, read_upto: int, user: Rated, now: float, *, resent_early: bool
    ) -> PenaltyVerdict:  # fmt: skip
        """A probe did not find the cid, so the entry is over the rate: block the conversation.

        Gives the wait to answer with. Raises Blocked if an earlier entry blocks.
        """
        if (earlier := self._cut(peer, cid, id, read_upto)) is not None:
            raise earlier
        wait_s = max(user.window.wait(now), user.penalty.until - now, 0.0)
        verdict = user.penalty.refused(now, wait_s, resent_early)
        self.blocked[peer] = self.blocked[peer]._replace(until=now + verdict.wait_s)
        return verdict

    def not_queued(self, peer: UserId, cid: Cid, id: int, error: errors.Retryable) -> errors.Refused:
        """An entry was not queued, while earlier ones may have been: block the conversation.

        Gives the error to answer with, as `failed`.
        """
        assert self is not UNTROUBLED
        waiting = self._wait_for(peer, cid, id)
        return error if waiting is None else blocked(waiting)

    def _cut(self, peer: UserId, cid: Cid, id: int, read_upto: int) -> errors.Blocked | None:
        assert self is not UNTROUBLED
        waiting = self.overtaken(peer, id)
        if waiting is None or waiting == cid:
            waiting = self._wait_for(peer, cid, id)
        if waiting is not None:
            return blocked(waiting)
        self.cuts[peer] = Cut(read_upto, cid)
        _let_go(self.cuts)
        return None

    def _wait_for(self, peer: UserId, cid: Cid, id: int) -> Cid | None:
        """Block a conversation for an entry; gives the cid of an earlier one if that blocks it."""
        block = self.blocked.get(peer)
        if block is not None and block.id <= id:
            return None if block.cid == cid else block.cid
        self.blocked[peer] = Block(cid, id, 0.0)
        _let_go(self.blocked)
        return None


def blocked(cid: Cid | None) -> errors.Blocked:
    """The refusal of an entry because of an earlier one."""
    return errors.Blocked("an earlier entry here waits to be sent again", cid=cid)


def nameless(conv: ConvId) -> UserId:
    """What stands for the peer while a conversation cannot be loaded; no user has such a name."""
    return UserId(f"{NAMELESS}{conv}")


def _let_go(waiting: dict[UserId, Block] | dict[UserId, Cut]) -> None:
    if len(waiting) > BLOCKS_MAX:
        del waiting[next(iter(waiting))]


UNTROUBLED: Final = SendOrder()
