"""What must hold after any fault, checked over what the clients saw and what PostgreSQL has. Pure.

    histories of all devices ──┐
                               ├──► check() ──► findings: (what, sentence); none is right
    the log, from PostgreSQL ──┘

A device's history is the list of what happened to it, in order: `Connected`, `Sent` (a cid, once,
when it first went into its outbox), `Acked`, `Got`, and `Epoch` where the welcome named another
log. The checker knows nothing of how chatd works; each rule is one of the promises of
docs/protocol.md. Each log has histories of its own: `by_epoch` takes them apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, TypeAlias


class Entry(NamedTuple):
    """One entry of the final log."""

    seq: int
    ts: int
    sender: str
    cid: str
    kind: str
    ref: int | None
    body: str | None


Log: TypeAlias = Mapping[str, Sequence[Entry]]  # by conversation


class Connected(NamedTuple):
    """A new connection, and per conversation the seq after which it goes on (`starts`)."""

    starts: dict[str, int]


class Epoch(NamedTuple):
    """The welcome named this log, which is not the one before: all that was held of that one is
    dropped, and the outbox kept.
    """

    epoch: str


class Sent(NamedTuple):
    cid: str
    to: str
    kind: str
    ref: int | None
    body: str | None


class Acked(NamedTuple):
    c: str
    seq: int
    ts: int
    cid: str
    dup: bool


class Got(NamedTuple):
    """An entry that was pushed or paged."""

    c: str
    seq: int
    ts: int
    sender: str
    kind: str
    ref: int | None
    body: str | None
    cid: str | None
    paged: bool = False  # from `history`: stands outside the connection's order


Event: TypeAlias = Connected | Sent | Acked | Got | Epoch


@dataclass(slots=True)
class History:
    """What happened to one device."""

    user: str
    device: str
    events: list[Event] = field(default_factory=list)


class Finding(NamedTuple):
    """`what`: lost, twice, order, hole, time, dup, body, missing, foreign."""

    what: str
    sentence: str


def check(histories: Sequence[History], log: Log) -> list[Finding]:
    """All that is wrong."""
    findings = list(_log(log))
    bodies = _bodies(histories, log)
    for history in histories:
        findings += _acks(history, log)
        findings += _seen(history)
        findings += _runs(history)
        findings += _sent_order(history, log)
        findings += _contents(history, log, bodies)
    return findings


def by_epoch(history: History) -> dict[str, History]:
    """A device's history with each of the logs that it knew: what was sent before may be in every
    later one.
    """
    parts: dict[str, History] = {}
    now = History(history.user, history.device)
    sent: list[Event] = []
    for e in history.events:
        if isinstance(e, Epoch):
            now = parts[e.epoch] = History(history.user, history.device, list(sent))
        elif isinstance(e, Sent):
            sent.append(e)
        now.events.append(e)
    return parts


def foreign(
    histories: Sequence[History], parts: Sequence[History], log: Log, who: Mapping[str, set[str]]
) -> list[Finding]:
    """What stands in, or was given from, a log of other people.

    `histories` are those of all who send, `parts` what they saw of this log.
    """
    sent = {(h.user, e.cid): e.to for h in histories for e in h.events if isinstance(e, Sent)}
    found = [
        Finding("foreign", f"{c} of {who[c]} has {entry}, which {entry.sender} sent to {to or 'nobody'}")
        for c, entries in log.items()
        for entry in entries
        if (to := sent.get((entry.sender, entry.cid))) is None or {entry.sender, to} != who[c]
    ]
    found += [
        Finding("foreign", f"{_who(part)} was given {e.c}/{e.seq}, of {who[e.c]}")
        for part in parts
        for e in part.events
        if isinstance(e, Got | Acked) and e.c in who and part.user not in who[e.c]
    ]
    return found


def missing(history: History, log: Log) -> list[Finding]:
    """Once all is quiet: what of the log a device of a participant has never seen."""
    seen = {(e.c, e.seq) for e in history.events if isinstance(e, Got) or (isinstance(e, Acked) and not e.dup)}
    places = [(c, entry.seq) for c, entries in log.items() for entry in entries]
    return [Finding("missing", f"{_who(history)} never got {c}/{seq}") for c, seq in places if (c, seq) not in seen]


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    return dict(Counter(finding.what for finding in findings))


def _who(history: History) -> str:
    return f"{history.user}/{history.device}"


def _log(log: Log) -> Iterator[Finding]:
    for c, entries in log.items():
        if [e.seq for e in entries] != list(range(1, len(entries) + 1)):
            yield Finding("hole", f"the log of {c} has seqs {[e.seq for e in entries][:50]}")
        for one, next_ in pairwise(entries):
            if next_.ts < one.ts:
                yield Finding("time", f"{c}/{next_.seq} is older than the entry before it")
        for (sender, cid), n in Counter((e.sender, e.cid) for e in entries).items():
            if n > 1:
                yield Finding("twice", f"cid {cid} of {sender} is in the log of {c} {n} times")


def _acks(history: History, log: Log) -> Iterator[Finding]:
    for e in history.events:
        if not isinstance(e, Acked):
            continue
        here = [entry for entry in log.get(e.c, ()) if entry.cid == e.cid and entry.sender == history.user]
        if not here:
            yield Finding("lost", f"{e.cid} of {_who(history)} was acked as {e.c}/{e.seq} and is not in the log")
        elif all((entry.seq, entry.ts) != (e.seq, e.ts) for entry in here):
            what = "dup" if e.dup else "lost"
            yield Finding(
                what, f"{e.cid} of {_who(history)} was acked as {e.c}/{e.seq} at {e.ts}, the log has {here[0][:2]}"
            )


def _seen(history: History) -> Iterator[Finding]:
    seen = Counter((e.c, e.seq) for e in history.events if isinstance(e, Got) or (isinstance(e, Acked) and not e.dup))
    for (c, seq), n in seen.items():
        if n > 1:
            yield Finding("twice", f"{_who(history)} was given {c}/{seq} {n} times")


def _runs(history: History) -> Iterator[Finding]:
    """On one connection a conversation's seqs rise by one; an ok that is no dup counts as its
    entry.
    """
    last: dict[str, int] = {}
    for e in history.events:
        if isinstance(e, Connected):
            last = dict(e.starts)
        elif (isinstance(e, Acked) and not e.dup) or (isinstance(e, Got) and not e.paged):
            if e.seq != last.get(e.c, 0) + 1:
                yield Finding("order", f"{_who(history)} got {e.c}/{e.seq} after {last.get(e.c, 0)}")
            last[e.c] = e.seq


def _sent_order(history: History, log: Log) -> Iterator[Finding]:
    """A device's entries stand in the log in the order in which it sent them."""
    places = {(entry.sender, entry.cid): (c, entry.seq) for c, entries in log.items() for entry in entries}
    last: dict[str, int] = {}
    for e in history.events:
        if isinstance(e, Sent) and (place := places.get((history.user, e.cid))) is not None:
            c, seq = place
            if seq < last.get(c, 0):
                yield Finding("order", f"{_who(history)} sent {e.cid} later than {c}/{last[c]}, and it stands at {seq}")
            last[c] = max(seq, last.get(c, 0))


def _bodies(histories: Sequence[History], log: Log) -> dict[tuple[str, int], set[str | None]]:
    """Per message what it may ever have read: as sent, as edited, and nothing once deleted."""
    sent = {(h.user, e.cid): e for h in histories for e in h.events if isinstance(e, Sent)}
    may: dict[tuple[str, int], set[str | None]] = {}
    for c, entries in log.items():
        for entry in entries:
            at = (c, entry.seq if entry.kind == "message" or entry.ref is None else entry.ref)
            first = sent.get((entry.sender, entry.cid))
            may.setdefault(at, set()).add(
                None if entry.kind == "delete" else first.body if first is not None else entry.body
            )
    return may


def _told(history: History, log: Log) -> dict[tuple[str, int | None], float]:
    """Per message: edits up to this seq need no text.

    A page that had the message had its text as of then; an edit has it as of its own seq.

    Such an edit may be beyond the head that the hello named: a page's copy of it is passed over
    then, as it is pushed, or acked to who made it.
    """
    told: dict[tuple[str, int | None], float] = {}
    for e in history.events:
        if isinstance(e, Got) and e.body is not None and (e.kind == "edit" or e.paged):
            at, upto = ((e.c, e.ref), float(e.seq)) if e.kind == "edit" else ((e.c, e.seq), math.inf)
        elif (
            isinstance(e, Acked) and 0 < e.seq <= len(log.get(e.c, ())) and (own := log[e.c][e.seq - 1]).kind == "edit"
        ):
            at, upto = (e.c, own.ref), float(e.seq)
        else:
            continue
        told[at] = max(upto, told.get(at, 0.0))
    return told


def _contents(history: History, log: Log, bodies: Mapping[tuple[str, int], set[str | None]]) -> Iterator[Finding]:
    told = _told(history, log)
    for e in history.events:
        if not isinstance(e, Got):
            continue
        entries = log.get(e.c, ())
        entry = entries[e.seq - 1] if 0 < e.seq <= len(entries) else None
        if entry is None:
            yield Finding("lost", f"{_who(history)} got {e.c}/{e.seq}, which is not in the log")
            continue
        given = (e.seq, e.ts, e.sender, e.kind, e.ref)
        if given != (entry.seq, entry.ts, entry.sender, entry.kind, entry.ref) or (
            e.cid is not None and e.cid != entry.cid
        ):
            yield Finding("body", f"{_who(history)} got {given} for {entry}")
        elif e.kind == "edit" and e.paged and e.body is None and told.get((e.c, e.ref), 0) >= e.seq:
            continue  # a page tells a text once: with the message, or with a later edit of it
        elif e.kind != "delete" and e.body not in bodies[e.c, e.seq if e.kind == "message" or e.ref is None else e.ref]:
            yield Finding("body", f"{_who(history)} read {e.body!r} in {e.c}/{e.seq}")
