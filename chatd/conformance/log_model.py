"""What the log of one conversation must be, by what was sent and answered. Pure.

    model.add(line)               an entry that was answered `ok`
    model.problem(frame, ...)     what is wrong with an entry that somebody was given
    model.item(user)              how a list of conversations must show it

Requests whose answer was lost leave holes, which are filled as their repeats are answered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chatd.conformance.values import Frame, Mismatch


@dataclass(frozen=True, slots=True)
class Line:
    """One entry: `body` is None for a delete, `ref` is 0 for a message."""

    seq: int
    ts: int
    sender: str
    to: str
    kind: str
    body: str | None
    ref: int
    cid: str


@dataclass(slots=True)
class ModelCursors:
    delivered: int = 0
    read: int = 0

    def move(self, delivered: int, read: int) -> None:
        """They only go forward, and `read` moves `delivered` along."""
        self.read = max(self.read, read)
        self.delivered = max(self.delivered, delivered, self.read)


@dataclass(slots=True)
class LogModel:
    """The log between two users."""

    users: tuple[str, str]
    c: str = ""
    lines: dict[int, Line] = field(default_factory=dict)
    cursors: dict[str, ModelCursors] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cursors = {user: ModelCursors() for user in self.users}

    @property
    def head(self) -> int:
        return max(self.lines, default=0)

    @property
    def is_open(self) -> bool:
        """Both have sent a message."""
        return {line.sender for line in self.lines.values() if line.kind == "message"} == set(self.users)

    def other(self, user: str) -> str:
        return self.users[self.users[0] == user]

    def add(self, c: str, line: Line) -> None:
        """An entry that was answered. Raises Mismatch if it contradicts an earlier answer."""
        if self.c not in ("", c):
            raise Mismatch(f"one conversation: {self.users} have {self.c}, and now {c}")
        self.c = c
        known = self.lines.get(line.seq)
        if known is not None and known.cid != line.cid:
            raise Mismatch(f"one seq, one entry: {known} and {line}")
        twice = [one for one in self.lines.values() if one.cid == line.cid and one.seq != line.seq]
        if twice:
            raise Mismatch(f"a cid is done once: {twice[0]} and {line}")
        self.lines[line.seq] = line

    def check_whole(self) -> None:
        """Raise Mismatch unless the seqs are 1, 2, 3 ... and times never fall along them."""
        if sorted(self.lines) != list(range(1, self.head + 1)):
            raise Mismatch(f"seqs without holes: {self.c} has {sorted(self.lines)}")
        times = [self.lines[seq].ts for seq in sorted(self.lines)]
        if times != sorted(times):
            raise Mismatch(f"times never fall along seq: {self.c} has {times}")

    def states(self, ref: int) -> dict[int, str | None]:
        """rev -> text of a message: as it was sent (0), and after each change."""
        changes = {line.seq: line.body for line in self.lines.values() if line.ref == ref}
        return {0: self.lines[ref].body, **dict(sorted(changes.items()))}

    def text(self, ref: int) -> str | None:
        """How a message stands now."""
        return list(self.states(ref).values())[-1]

    def problem(self, frame: Frame, *, known_head: int = 0, is_page: bool = False) -> str:
        """What is wrong with an entry that was given, or nothing.

        `known_head`: changes up to there must show in it. `is_page`: it is of `history`.
        """
        line = self.lines.get(_int(frame, "seq"))
        if line is None:
            return "nobody has sent it"
        wanted: Frame = {"from": line.sender, "to": line.to, "kind": line.kind, "ts": line.ts}
        wanted |= {"ref": line.ref} if line.ref else {}
        wrong = [f"{key} is not {value!r}" for key, value in wanted.items() if frame.get(key) != value]
        if "cid" in frame and frame["cid"] != line.cid:
            wrong.append(f"cid is not {line.cid!r}")
        if wrong:
            return ", ".join(wrong)
        return self._problem_of_text(line, frame, known_head, is_page)

    def _problem_of_text(self, line: Line, frame: Frame, known_head: int, is_page: bool) -> str:
        if line.kind == "delete":
            return "" if frame.get("body") is None else "a delete has no text"
        states = self.states(line.ref or line.seq)
        if line.kind == "edit":
            later = [text for rev, text in states.items() if rev >= line.seq]
            allowed = [*later, None] if is_page else later
            return "" if frame.get("body") in allowed else f"the text of an edit is one of {allowed}"
        rev = _int(frame, "rev") if "rev" in frame else 0
        least = max(rev for rev in states if rev <= known_head)
        if rev not in states or rev < least:
            return f"rev is none of {[rev for rev in states if rev >= least]}"
        return "" if frame.get("body") == states[rev] else f"its text by rev {rev} is {states[rev]!r}"

    def item(self, user: str) -> Frame:
        """The item of a list, but for its `ts`."""
        peer = self.other(user)
        own, others = self.cursors[user], self.cursors[peer] if self.is_open else ModelCursors()
        unread = [line for seq, line in self.lines.items() if seq > own.read and line.sender == peer]
        return {
            "c": self.c,
            "peer": peer,
            "head": self.head,
            "floor": 1,
            "delivered": own.delivered,
            "read": own.read,
            "peer_delivered": others.delivered,
            "peer_read": others.read,
            "unread": sum(line.kind == "message" for line in unread),
            "open": self.is_open,
        }


def _int(frame: Frame, key: str) -> int:
    value = frame.get(key)
    return value if isinstance(value, int) else -1
