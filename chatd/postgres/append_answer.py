"""What `append` did, typed: its rows are read once, here, and nothing of their form goes on.

    rows of `append` ──read──► Answer ──► lane (what was acked), chat/send (who gets which answer)

A row with a conversation's first new seq stands for all new messages of the batch there: they have
the seqs from it on, in order. Every other item has a row of its own, whose place is `ord`: from 0
among the messages, from -1 down among the changes (edits and deletes). See `append` in
sql/functions.

Guarantee: each item of the batch is in the answer. An item for which `append` gave nothing, or what
cannot be true (a seq or a time that is none, another conversation), has no outcome, and must not
get an `ok`: the batch counts as an outage of unknown outcome.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from chatd.postgres.faults import Outage

if TYPE_CHECKING:
    from chatd.core.batch import Batch, Item
    from chatd.core.conversation import Conversation
    from chatd.errors import Retryable
    from chatd.ids import ConvId
    from chatd.postgres.connection import Backend

# Followed by a seq: a change that named its message by a cid is written; the seq is the message's.
REF: Final = "ref "


class What(enum.Enum):
    """What became of an item that has a result of its own.

    The values are the notes of `append`; `WRITTEN` has none.
    """

    WRITTEN = None
    DUPLICATE = "dup"
    LIMITED = "limited"
    NO_MESSAGE = "no_message"
    NOT_AUTHOR = "not_author"
    DELETED = "deleted"
    TOO_LATE = "too_late"


HAVE_SEQ: Final = frozenset((What.WRITTEN, What.DUPLICATE))
# A message that was written is one of its conversation's run
OF_MESSAGES: Final = frozenset((What.DUPLICATE, What.LIMITED))


class First(NamedTuple):
    """Of a conversation's new messages: the seq of the first one, and the time of all, in ms since
    1970 by PostgreSQL's clock.
    """

    seq: int
    ts: int


class Result(NamedTuple):
    """Of one item.

    `seq`, `ts` (ms): of the entry that it made or repeats, else 0; `ref`: of a change that named
    its message by its cid, else 0.
    """

    what: What
    seq: int = 0
    ts: int = 0
    ref: int = 0


class Answer(NamedTuple):
    """For a whole batch.

    A message that is not in `messages` is one of the new ones that its conversation's `First`
    stands for.
    """

    firsts: dict[ConvId, First]  # by conversation
    messages: dict[int, Result]  # by place among the batch's messages: those that made no entry
    changes: list[Result]  # one a change, in the batch's order


class Outcome(Protocol):
    """What learns the outcome of items. Called in the order of the log, never twice for an item.

    `now`: the loop's clock, in seconds.
    """

    def committed(self, batch: Batch, answer: Answer, now: float) -> None: ...
    def failed(self, items: list[Item], error: Retryable, *, is_unknown: bool = False) -> None: ...
    def refused(self, item: Item) -> None: ...
    def blocked(self, items: list[Item]) -> None: ...
    def outcome_unknown(self, convs: set[ConvId], writers: set[Backend]) -> None: ...


NO_RESULTS: Final[list[Result]] = []  # nearly every batch has no changes


def read(rows: list[tuple[Any, ...]], batch: Batch, convs: set[ConvId]) -> Answer:
    """The rows of `append`.

    `convs`: of the batch's messages. Raises Outage where one of the items has no answer.
    """
    try:
        answer = _typed(rows, batch)
        if answer is not None and _is_whole(answer, batch, convs):
            return answer
    except (TypeError, ValueError, IndexError) as e:  # none of the types that `append` has
        raise Outage(f"`append` gave an odd answer: {e}", "answer") from e
    raise Outage("`append` gave no answer for some of the batch", "answer")


def _typed(rows: list[tuple[Any, ...]], batch: Batch) -> Answer | None:
    """None: something in it cannot be true."""
    firsts: dict[ConvId, First] = {}
    messages: dict[int, Result] = {}
    changes: dict[int, Result] = {}
    for ord, conv, seq, ts, note in rows:
        if ord is None:
            firsts[conv] = First(seq, ts)
            if not seq > 0 or ts is None:
                return None
            continue
        result = _result(seq, ts, note)
        of_message = ord >= 0
        item = batch.messages[ord] if of_message else batch.changes[-1 - ord]
        if not _is_of(item.conv, conv, result) or (of_message and result.what not in OF_MESSAGES):
            return None
        if of_message:
            messages[ord] = result
        else:
            changes[-1 - ord] = result
    if not batch.changes:
        return Answer(firsts, messages, NO_RESULTS)
    return (
        Answer(firsts, messages, [changes[n] for n in range(len(batch.changes))])
        if len(changes) == len(batch.changes)
        else None
    )


def _result(seq: int | None, ts: int | None, note: str | None) -> Result:
    """Raises ValueError for a note that is none."""
    if note is not None and note.startswith(REF):
        return Result(What.WRITTEN, seq or 0, ts or 0, int(note[len(REF) :]))
    return Result(What(note), seq or 0, ts or 0)


def _is_of(conv: Conversation, id: object, result: Result) -> bool:
    return conv.id == id and (result.what not in HAVE_SEQ or (result.seq > 0 and result.ts > 0))


def _is_whole(answer: Answer, batch: Batch, convs: set[ConvId]) -> bool:
    """Every message has a result, or its conversation has new ones."""
    if not answer.messages:
        return answer.firsts.keys() == convs
    return all(n in answer.messages or item.conv.id in answer.firsts for n, item in enumerate(batch.messages))


def is_behind(batch: Batch, answer: Answer, delivered: list[int]) -> bool:
    """A new entry got a seq that had been delivered before the batch went: the log has lost what
    was there, under this connection.

    `delivered`: the heads of the items' conversations at that time.
    """
    firsts, messages, changes = answer
    n = 0
    for item in batch.messages:  # no call in here: this is on the path of a message
        if n not in messages and firsts[item.conv.id].seq <= delivered[n]:
            return True
        n += 1
    for result in changes:
        if result.what is What.WRITTEN and result.seq <= delivered[n]:
            return True
        n += 1
    return False
