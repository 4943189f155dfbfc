"""The order and rate of one session's entries in each conversation (invariant 10): which are
written, which are refused because an earlier one failed.

    arrive ──► (waits: chat/send.py) ──► decide ──► the lane ──► overtaken ──► written
                                           │                         │
                            not_queued ◄───┘                         └──► failed | limited

Two maps by peer hold the order. `blocked`: after a retryable error to an entry, later ones in that
conversation are refused until its cid is sent again or given up. `cuts`: entries that were queued
behind one that failed in its lane must not be written either, not even when that one is back,
because then it stands behind them. Earlier and later go by the ids of the requests: an entry that
never got into a lane (too many frames, a full queue) must not stop those before it that did.

An entry over the rate is not refused at once: its cid may be known (a lost ok), and then the answer
is free. So it goes down the lane as a *probe*, which writes nothing; so does whatever follows it
there while its answer is out.

Sending again before `retry_ms` costs a penalty (`Penalty`), whatever the cid. What was on its way
already is not held against the client, so there must be a sign that it has read a refusal: it sends
that cid again, or gives it up by `skip`. From then on every entry of the session before that time
is resent early.

Most sessions never have any trouble: they share `UNTROUBLED`, which is never written to, and get
one of their own (`Session.own_order`) with the first entry that fails or is probed. So an idle
session pays one slot.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from chatd import errors
from chatd.core.rate_limit import EARLY_SLACK_S, Penalty, PenaltyVerdict, SlidingWindow
from chatd.ids import Cid, UserId

# Conversations of a session that wait for an entry. Past it the longest waiting one is let go: what
# was pipelined behind its entry, which is what the order is in danger from, has long arrived.
# Without a bound, sends to ever new names would fill the memory.
BLOCKS_MAX: Final = 1_000


class Rated(Protocol):
    """Whose rate counts: `conversations.User`, with all sessions of theirs."""

    window: SlidingWindow
    penalty: Penalty


class Block(NamedTuple):
    """A conversation waits for this entry. `id`: the request that failed; `until`: the time that
    its client was told to wait for, 0 if none.
    """

    cid: Cid
    id: int
    until: float


class Cut(NamedTuple):
    """What was queued up to request `id` stands behind this cid, which failed."""

    id: int
    cid: Cid


class SendOrder:
    """Of one session. Maps are by peer; `id`: of an entry's request; `now` in seconds, never
    falling.
    """

    __slots__ = ("blocked", "cuts", "probing", "warned_until")

    def __init__(self) -> None:
        self.blocked: dict[UserId, Block] = {}  # the entry that must be sent again first
        self.cuts: dict[UserId, Cut] = {}  # what of the queue must not be written
        self.probing: dict[UserId, int] = {}  # probes whose answer is out
        # The client knows that it is over the rate until then: it has answered a refusal that said
        # so
        self.warned_until = 0.0

    # ---- on the way in ---------------------------------------------------------------------------

    def arrive(self, peer: UserId, cid: Cid, now: float) -> bool:
        """An entry has just been read. Is it resent early, before a `retry_ms` that its sender has
        read? Raises Blocked if an earlier one is waited for.

        If it is the one that is waited for, later ones may follow it.
        """
        if self.blocked and (block := self.blocked.get(peer)) is not None:
            if block.cid != cid:
                raise blocked(block.cid)
            self._answered(peer, block)
        return now < self.warned_until

    def decide(self, peer: UserId, cid: Cid, id: int, user: Rated, now: float) -> bool:
        """An entry is about to be queued, and all before it are. True: to be written, a slot of the
        rate is taken. False: it may only be probed for.

        Raises Blocked if one of those before it has failed since it arrived. Its outcome must come
        back in the order of the lane: to `probed` if it was a probe, and to `limited` or `failed`
        if it made nothing; or to `not_queued` if the lane does not take it.
        """
        if self.blocked or self.cuts:
            self._recheck(peer, cid, id)
        if self.probing and peer in self.probing:
            return False
        return now >= user.penalty.until and user.window.take(now) == 0.0

    def _recheck(self, peer: UserId, cid: Cid, id: int) -> None:
        """What got no place after this entry arrived (a later id) does not stand before it,
        whatever it blocks.
        """
        if (waiting := self.overtaken(peer, id)) is not None:
            raise blocked(waiting)
        if (block := self.blocked.get(peer)) is not None and block.id < id:
            if block.cid != cid:
                raise blocked(block.cid)
            del self.blocked[peer]

    def overtaken(self, peer: UserId, id: int) -> Cid | None:
        """For an entry that a lane has queued: the cid before it that has failed since. Then it
        must not be written.
        """
        if (cut := self.cuts.get(peer)) is not None and id <= cut.id:
            return cut.cid
        return None

    def skip(self, peer: UserId, cid: Cid) -> None:
        """The client gives up a cid: its conversation is free again."""
        if (block := self.blocked.get(peer)) is not None and block.cid == cid:
            self._answered(peer, block)

    def _answered(self, peer: UserId, block: Block) -> None:
        """The client has read the refusal that blocked a conversation: it does as that said, or
        gives the entry up.
        """
        del self.blocked[peer]
        self.warned_until = max(self.warned_until, block.until - EARLY_SLACK_S)

    # ---- what became of it: only of a session's own, never of UNTROUBLED -------------------------

    def probe(self, peer: UserId) -> None:
        """An entry goes to the lane as a probe: what follows it there is one, too, until `probed`.
        """
        assert self is not UNTROUBLED
        self.probing[peer] = self.probing.get(peer, 0) + 1

    def probed(self, peer: UserId) -> None:
        """A probe's answer is in, whatever it is."""
        self.probing[peer] -= 1
        if not self.probing[peer]:
            del self.probing[peer]

    def failed(self, peer: UserId, cid: Cid, id: int, read_upto: int, error: errors.Retryable) -> errors.Refused:
        """An entry in its lane was not written, or nobody knows. Blocks the conversation until it
        is sent again; gives the error to answer with.

        `read_upto`: the last request of the session so far; what it has queued up to there stands
        behind this entry. If an earlier entry is waited for, that is the error to give instead of
        the entry's own.
        """
        return self._cut(peer, cid, id, read_upto) or error

    def limited(
        self, peer: UserId, cid: Cid, id: int, read_upto: int, user: Rated, now: float, *, resent_early: bool
    ) -> PenaltyVerdict:  # fmt: skip
        """A probe found nothing: the entry is over the rate. Blocks the conversation until it is
        sent again; gives what to tell. Raises as `failed`.
        """
        if (earlier := self._cut(peer, cid, id, read_upto)) is not None:
            raise earlier
        wait_s = max(user.window.wait(now), user.penalty.until - now, 0.0)
        verdict = user.penalty.refused(now, wait_s, resent_early)
        self.blocked[peer] = self.blocked[peer]._replace(until=now + verdict.wait_s)
        return verdict

    def not_queued(self, peer: UserId, cid: Cid, id: int, error: errors.Retryable) -> errors.Refused:
        """An entry did not get into a lane: those before it that did go on. Blocks the conversation
        until it is sent again; gives the error, as `failed`.
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
        """Block a conversation for an entry; gives the cid of an earlier one instead, if that is
        waited for.
        """
        block = self.blocked.get(peer)
        if block is not None and block.id <= id:
            return None if block.cid == cid else block.cid
        self.blocked[peer] = Block(cid, id, 0.0)
        _let_go(self.blocked)
        return None


def blocked(cid: Cid | None) -> errors.Blocked:
    """The refusal of an entry because of an earlier one."""
    return errors.Blocked("an earlier entry here waits to be sent again", cid=cid)


def _let_go(waiting: dict[UserId, Block] | dict[UserId, Cut]) -> None:
    if len(waiting) > BLOCKS_MAX:
        del waiting[next(iter(waiting))]


UNTROUBLED: Final = SendOrder()
