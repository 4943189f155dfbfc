"""Real errors of PostgreSQL in place of a statement's answer: by SQLSTATE, at any statement of the
node.

    arm(code, text) ─► the next statements of that text ask the server to RAISE that code instead,
                       over the same connection

So class, message and diagnostics are those of a real ErrorResponse. `ends`: the connection is
closed with it, as by a FATAL error. `CODES`: all that psycopg knows (PostgreSQL's errcodes.txt),
and some that nobody does; those of the fence are ours and mean something else.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import errors as pg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

KNOWN: Final = sorted(code for code in pg._sqlcodes if re.fullmatch("[0-9A-Z]{5}", code))
UNKNOWN: Final = ("01ZZZ", "22ZZZ", "40ZZZ", "57ZZZ", "99999", "AB123", "ZZ000")
CODES: Final = (*KNOWN, *UNKNOWN)
CLASSES: Final = sorted({code[:2]: code for code in reversed(CODES)}.values())  # one code of each class

RAISE: Final = """
    CREATE OR REPLACE FUNCTION public.injected(code text) RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'injected %', code USING ERRCODE = code; END $$
"""


def is_data(code: str) -> bool:
    """Whether this code speaks of the row (PostgreSQL's Appendix A).

    Without a constraint, 23514 is a partition that is missing.
    """
    return (code[:2] in ("22", "23", "44") and code != "23514") or code == "P0001"


class Injector:
    """Put in place by `installed`; counts what was injected by statement, and notes all statements
    it has seen.
    """

    def __init__(self) -> None:
        self.choose: Callable[[str], str | None] = lambda text: None
        self.ends = False
        self.seen: dict[str, set[object]] = {}  # by statement, the tasks that made it
        self.injected: Counter[str] = Counter()
        self.codes: set[str] = set()

    @contextlib.contextmanager
    def armed(self, code: str, text: str, *, ends: bool = False) -> Iterator[None]:
        """All statements of this text fail by this code."""
        self.choose, self.ends = (lambda one: code if one == text else None), ends
        try:
            yield
        finally:
            self.disarm()

    def disarm(self) -> None:
        self.choose, self.ends = (lambda text: None), False


@contextlib.contextmanager
def installed(monkeypatch: pytest.MonkeyPatch, conninfo: str) -> Iterator[Injector]:
    """Every statement of psycopg's async cursors in this process passes by the injector."""
    with psycopg.connect(conninfo, autocommit=True) as conn:
        conn.execute(RAISE)
    injector = Injector()
    real = psycopg.AsyncCursor.execute

    async def execute(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        text = query if isinstance(query, str) else query.as_string(None)
        injector.seen.setdefault(text, set()).add(asyncio.current_task())
        code = injector.choose(text)
        if code is None:
            return await real(self, query, *args, **options)
        injector.injected[text] += 1
        injector.codes.add(code)
        try:
            return await real(self, f"SELECT public.injected('{code}')", prepare=False)
        finally:
            if injector.ends:
                self.connection.pgconn.finish()

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.AsyncCursor, "execute", execute)
        yield injector
