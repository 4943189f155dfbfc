"""What an error of PostgreSQL means. This module alone decides it.

    judge(error)
      ──► DATA        the row is at fault: the request is refused, another try gives the same
      ──► CONFLICT    rolled back in favour of another transaction: repeat the statement at once
      ──► LOCKED      another transaction holds a lock: rolled back
      ──► PARTITION   the log has no partition for the current time: make it
      ──► MOVED       the log is not the one that the node knows (postgres/log_state.py)
      ──► STRANGER    a conversation does not exist, or is between other users
      ──► OUTAGE      everything else, known or not

The rule: an error is an outage unless its SQLSTATE speaks of the row (PostgreSQL, Appendix A, Error
Codes). psycopg's own classes differ: it calls a database that is read-only for a moment (25006) an
InternalError, and a missing right (42501) a ProgrammingError. Sessions outlive an outage; a data
fault is the client's. So an unknown code must be an outage: as a data fault it would refuse
messages for good.
"""

from __future__ import annotations

import enum
from typing import Final

import psycopg


class Fault(enum.Enum):
    """What to do about an error; see the module."""

    DATA = enum.auto()
    CONFLICT = enum.auto()
    LOCKED = enum.auto()
    PARTITION = enum.auto()
    MOVED = enum.auto()
    STRANGER = enum.auto()
    OUTAGE = enum.auto()


class Outage(Exception):
    """The database cannot do it now.

    `kind`: one of KINDS. `is_unknown`: the statement may have been carried out nevertheless.
    """

    def __init__(self, sentence: str, kind: str = "away", *, is_unknown: bool = True) -> None:
        super().__init__(sentence)
        self.kind = kind
        self.is_unknown = is_unknown


# data_exception, integrity_constraint_violation, with_check_option_violation; P0001: RAISE
# EXCEPTION of a trigger, without a code
_DATA_CLASSES: Final = ("22", "23", "44")
_DATA_CODES: Final = ("P0001",)
_CONFLICTS: Final = ("40001", "40P01")  # serialization_failure, deadlock_detected
MOVED_CODE: Final = "CH001"  # sql/functions/append.sql
STRANGER_CODE: Final = "CH002"

# SQLSTATE or its first characters -> kind. The longest match counts
KINDS: Final = {
    "25006": "read-only",
    "53100": "disk-full",
    "53200": "out-of-memory",
    "53300": "too-many-connections",
    "55P03": "locked",
    "57014": "timeout",
    "57P03": "starting",
    "CH001": "moved",
    "CH002": "moved",
    "08": "away",
    "28": "refused",
    "3D": "refused",
    "3F": "schema",
    # Our prepared statement does not exist, or another client's exists: the session is shared
    "26000": "pooler",
    "42P05": "pooler",
    "42501": "no-right",
    "42": "schema",
    "53": "resources",
    "57": "stopping",
    "58": "system",
    "XX": "internal",
}


def judge(error: BaseException) -> Fault:
    """What to do about an error; an unknown one is an outage."""
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return Fault.OUTAGE
    code = error.sqlstate
    if code == "23514" and error.diag.constraint_name is None:
        return Fault.PARTITION  # check_violation without a constraint: "no partition of relation found for row"
    if code[:2] in _DATA_CLASSES or code in _DATA_CODES:
        return Fault.DATA
    if code in _CONFLICTS:
        return Fault.CONFLICT
    if code == "55P03":
        return Fault.LOCKED
    if code == MOVED_CODE:
        return Fault.MOVED
    return Fault.STRANGER if code == STRANGER_CODE else Fault.OUTAGE


def kind(error: BaseException) -> str:
    """A stable word for metrics and readiness."""
    if isinstance(error, Outage):
        return error.kind
    if isinstance(error, TimeoutError):
        return "timeout"
    code = (error.sqlstate if isinstance(error, psycopg.Error) else None) or ""
    if not code and _NO_PRIMARY_WORDS in str(error):
        return "standby"
    for n in (5, 2):
        if (found := KINDS.get(code[:n])) is not None:
            return found
    return "other" if code else "away"


# libpq's text for a standby where a primary was asked for; it has no SQLSTATE. The last of several
# servers may have failed for another reason: the whole text is searched.
_NO_PRIMARY_WORDS: Final = "server is in hot standby mode"
NO_PRIMARY: Final = "no server in database_url is a primary that answers: promote a standby, or name the primary there"
TIMEOUT: Final = (
    "no answer in time: `wait_event` in pg_stat_activity says what it waits for"
    " (SyncRep: a synchronous standby is away), or a pooler has no connection left"
)


def sentence(error: BaseException) -> str:
    """One line, for the log and for readiness.

    libpq's messages hold host, user and database, never a password.
    """
    if isinstance(error, TimeoutError) and not str(error):
        return TIMEOUT
    if not isinstance(error, Outage) and kind(error) == "standby":
        return NO_PRIMARY
    return " ".join((str(error).split("\n", 1)[0] or type(error).__name__).split())


POOLER: Final = (
    "a pooler gives one session to several clients: chatd needs sessions of its own;"
    " connect directly, or pool by session"
)


def outage(error: BaseException, *, is_unknown: bool) -> Outage:
    """The error as an Outage."""
    if isinstance(error, Outage):
        return error
    return Outage(POOLER if kind(error) == "pooler" else sentence(error), kind(error), is_unknown=is_unknown)
