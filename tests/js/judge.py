"""What must hold of clients of the SDK after any fault: the rules of tests/faults/checker.py, and what users see. Pure.

A client's connections are hidden from who uses it. So its entries have to rise by one in each conversation, from the
first one on: from 1 where the client was there from the start, else from wherever its tab was opened. What the client
says that it fetches (`gap`) stands outside of that order, and has to be given all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

from tests.faults import checker
from tests.faults.checker import Connected, Entry, Event, Finding, Got, History, Log, Sent
from tests.js.driven import Driven, Gap

Who: TypeAlias = Mapping[str, set[str]]
Shown: TypeAlias = Sequence[Sequence[object]]  # seq, sender, body, whether it waits
FROM_THE_START: Final = 1


def judge_told(everyone: Sequence[Driven], living: Sequence[Driven], log: Log, who: Who) -> list[Finding]:
    """Over what all told. Of those that have ended, what they told has to be right; the others have to have all."""
    seqs = {(c, entry.cid): entry.seq for c, entries in log.items() for entry in entries}
    histories = [as_pushed(_by_seq(one, seqs), one.gaps) for one in everyone]
    # A tab that crashes may have said what it did not tell of: once that is deleted, nobody knows where it stood.
    dying = {repr(text) for one in everyone if one.has_ended for text in one.unreported}
    findings = [
        one
        for one in checker.check(histories, log)
        if one.what != "body" or not any(f" read {text} in " in one.sentence for text in dying)
    ]
    findings += [Finding("fault", f"{one.history.device}: {fault}") for one in everyone for fault in one.faults]
    alive = {id(one) for one in living}
    for one, history in zip(everyone, histories, strict=True):
        if id(one) in alive:
            findings += checker.missing(history, _theirs(history, log, who))
            findings += _unsent(one, log)
    return findings


def _by_seq(client: Driven, seqs: Mapping[tuple[str, str], int]) -> History:
    """The same, with the seq of each message that an own change names by its cid."""
    events = [
        e._replace(ref=seqs.get((e.c, refcid)))
        if isinstance(e, Got) and (refcid := client.refcids.get((e.c, e.seq))) is not None
        else e
        for e in client.history.events
    ]
    return History(client.history.user, client.history.device, events)


def as_pushed(history: History, gaps: Sequence[Gap]) -> History:
    """The same, as the checker knows it: what filled a gap is `paged`, and a connection begins behind it."""
    events: list[Event] = []
    last: dict[str, int] = {}
    for e in history.events:
        if not isinstance(e, Got):
            events.append(e)
        elif any(gap.c == e.c and gap.after < e.seq <= gap.head for gap in gaps):
            events.append(e._replace(paged=True))
        else:
            before = last.get(e.c)
            if before is None or any(gap.c == e.c and before <= gap.after and e.seq == gap.head + 1 for gap in gaps):
                events.append(Connected({**last, e.c: e.seq - 1}))
            last[e.c] = e.seq
            events.append(e)
    return History(history.user, history.device, events)


def _theirs(history: History, log: Log, who: Who) -> dict[str, list[Entry]]:
    """What a client has to have been given: its logs, from the first entry that it got on."""
    first: dict[str, int] = {}
    for e in history.events:
        if isinstance(e, Got):
            first[e.c] = min(e.seq, first.get(e.c, e.seq))
    return {
        c: [entry for entry in entries if entry.seq >= first[c]]
        for c, entries in log.items()
        if history.user in who[c] and c in first
    }


def from_the_start(clients: Iterable[Driven], log: Log, who: Who) -> list[Finding]:
    """These were there before the first entry: they got each from 1 on."""
    return [
        finding
        for one in clients
        for finding in checker.missing(one.history, {c: log[c] for c in log if one.history.user in who[c]})
    ]


def _unsent(client: Driven, log: Log) -> Iterator[Finding]:
    """Whoever lives has got through what it said."""
    there = {entry.cid for entries in log.values() for entry in entries}
    for e in client.history.events:
        if isinstance(e, Sent) and e.cid not in there:
            yield Finding("lost", f"{e.cid} of {client.history.device} never reached the log")


def as_it_stands(entries: Sequence[Entry]) -> list[tuple[int, str, str | None]]:
    """The messages of a log with their last text; None where they were deleted.

    Of a message that was changed the last row alone has a text.
    """
    now: dict[int, tuple[int, str, str | None]] = {}
    for e in entries:
        if e.kind == "message":
            now[e.seq] = (e.seq, e.sender, e.body)
        elif e.ref is not None and (e.kind == "delete" or e.body is not None):
            now[e.ref] = (*now[e.ref][:2], e.body)
    return list(now.values())


def judge_shown(history: History, peer: str, shown: Shown, log: Log, who: Who) -> list[Finding]:
    """What a user sees of a conversation is the log as it stands."""
    c = next((c for c, users in who.items() if users == {history.user, peer}), None)
    truth = [] if c is None else as_it_stands(log[c])
    seen = [(seq, sender, body) for seq, sender, body, *_ in shown]
    if seen == truth:
        return []
    wrong = [pair for pair in zip(seen, truth, strict=False) if pair[0] != pair[1]][:2]
    return [
        Finding("shown", f"{history.device} shows {len(seen)} of {len(truth)} messages with {peer}; first: {wrong}")
    ]
