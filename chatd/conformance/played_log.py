"""What the server that a walk plays to a client keeps: alice's logs. Pure.

    log.store(...)        a new entry at the end
    log.live(line)        its frame as it is pushed
    log.standing(line)    as resync and history give it
    log.problem(shown)    what is wrong with what the client gave to its application of this log

`given` has, for each seq, the texts that went out: an entry that is read again is given as it
stands then, so a client may show any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from chatd.conformance.log_model import Line
from chatd.conformance.values import Frame

ALICE: Final = "alice"
EPOCH: Final = "e1"
TS: Final = 1_790_000_000_000
KINDS: Final = ("message", "edit", "delete")  # an entry of another kind may be shown or not


@dataclass(slots=True)
class PlayedLog:
    """The log between alice, who uses the client, and `peer`."""

    c: str
    peer: str
    lines: list[Line] = field(default_factory=list)
    given: dict[int, set[str | None]] = field(default_factory=dict)
    delivered: int = 0
    read: int = 0
    changed_at: int = 0  # the server's count of entries when this one got its last

    @property
    def head(self) -> int:
        return len(self.lines)

    def store(self, sender: str, kind: str, body: str | None, ref: int, cid: str) -> Line:
        """Append an entry."""
        seq = self.head + 1
        to = self.peer if sender == ALICE else ALICE
        line = Line(seq, TS + seq, sender, to, kind, body, ref, cid)
        self.lines.append(line)
        self.given[seq] = {body}
        return line

    def by_cid(self, cid: object) -> Line | None:
        """Alice's entry with this cid."""
        return next((line for line in self.lines if line.sender == ALICE and line.cid == cid), None)

    def target(self, ref: object, refcid: object) -> Line | None:
        """The message of alice that an edit or delete names."""
        mine = [line for line in self.lines if line.sender == ALICE and line.kind == "message"]
        return next(
            (line for line in mine if ref in (None, line.seq) and refcid in (None, line.cid) and (ref or refcid)), None
        )

    def changes(self, seq: int) -> list[Line]:
        """Of a message, in their order."""
        return [line for line in self.lines if line.ref == seq]

    def is_deleted(self, seq: int) -> bool:
        return any(line.kind == "delete" for line in self.changes(seq))

    def live(self, line: Line) -> Frame:
        """As it is pushed once it is stored."""
        return {"t": "entry", "c": self.c, **self._keys(line, line.body)}

    def standing(self, line: Line) -> Frame:
        """As it stands now, without `t` and `c`."""
        of = line.ref or line.seq
        changes = self.changes(of)
        if not changes or line.kind not in ("message", "edit"):
            return self._keys(line, line.body)
        frame = self._keys(line, None if self.is_deleted(of) else changes[-1].body)
        if line.kind == "message":
            what = "deleted" if self.is_deleted(of) else "edited"
            frame |= {"rev": changes[-1].seq, what: changes[-1].ts}
        return frame

    def _keys(self, line: Line, body: str | None) -> Frame:
        self.given[line.seq].add(body)
        frame: Frame = {"seq": line.seq, "ts": line.ts, "from": line.sender, "to": line.to, "kind": line.kind}
        frame |= {} if line.kind == "delete" else {"body": body}
        frame |= {"ref": line.ref} if line.ref else {}
        return frame | ({"cid": line.cid} if line.sender == ALICE else {})

    def item(self) -> Frame:
        """As a welcome lists it."""
        others = sum(line.sender != ALICE and line.kind == "message" for line in self.lines[self.read :])
        senders = {line.sender for line in self.lines if line.kind == "message"}
        return {
            "c": self.c, "peer": self.peer, "head": self.head, "floor": 1, "ts": TS + self.head,
            "delivered": self.delivered, "read": self.read, "peer_delivered": 0, "peer_read": 0,
            "unread": others, "open": len(senders) == 2,
        }  # fmt: skip

    def problem(self, shown: Sequence[Frame]) -> str:
        """What is wrong with all entries of known kinds that were shown, or nothing."""
        wanted = [line for line in self.lines if line.kind in KINDS]
        for line, entry in zip(wanted, shown, strict=False):
            if entry.get("seq") != line.seq:
                seqs = [one.get("seq") for one in shown]
                return f"each entry once and in order: with {self.peer} it showed {seqs}, of {self.head}"
            keys: Frame = {"from": line.sender, "to": line.to, "kind": line.kind}
            wrong = {key: entry.get(key) for key, value in keys.items() if entry.get(key) != value}
            if wrong or entry.get("body") not in self.given[line.seq]:
                return f"entries are as they were sent: {self.live(line)}, and it showed {entry}"
        if len(shown) != len(wanted):
            return f"each entry once: with {self.peer} it showed {len(shown)} of {len(wanted)}"
        return ""
