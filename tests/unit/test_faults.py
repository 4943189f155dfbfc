"""What an error of PostgreSQL means: an outage unless its SQLSTATE speaks of the row."""

from __future__ import annotations

import psycopg
import pytest

from chatd.postgres import faults
from chatd.postgres.faults import Fault, Outage, judge, kind, outage, sentence


def error(code: str, text: str = "x") -> psycopg.Error:
    """As the server's error of that code; psycopg has no class for our own."""
    try:
        return psycopg.errors.lookup(code)(text)
    except KeyError:
        made = type("Own", (psycopg.Error,), {"sqlstate": code})(text)
        assert isinstance(made, psycopg.Error)
        return made


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("22001", Fault.DATA),
        ("23505", Fault.DATA),
        ("P0001", Fault.DATA),
        ("23514", Fault.PARTITION),  # without a constraint's name
        ("40001", Fault.CONFLICT),
        ("40P01", Fault.CONFLICT),
        ("55P03", Fault.LOCKED),
        ("CH001", Fault.MOVED),
        ("CH002", Fault.STRANGER),
        ("25006", Fault.OUTAGE),
        ("42501", Fault.OUTAGE),
        ("99999", Fault.OUTAGE),  # nobody knows it
    ],
)
def test_what_is_to_be_done(code: str, fault: Fault) -> None:
    assert judge(error(code)) is fault


def test_what_has_no_sqlstate_is_an_outage() -> None:
    for one in (OSError("gone"), TimeoutError(), psycopg.OperationalError("gone"), ValueError("a bug")):
        assert judge(one) is Fault.OUTAGE


@pytest.mark.parametrize(
    ("one", "word"),
    [
        (error("53100"), "disk-full"),
        (error("08006"), "away"),
        (error("42P01"), "schema"),
        (error("42501"), "no-right"),
        (error("26000"), "pooler"),
        (error("99999"), "other"),
        (TimeoutError(), "timeout"),
        (OSError("refused"), "away"),
        (psycopg.OperationalError("a: refused\nb: server is in hot standby mode"), "standby"),
        (Outage("x", "moved"), "moved"),
    ],
)
def test_the_word_for_metrics(one: BaseException, word: str) -> None:
    assert kind(one) == word


def test_the_sentence_is_one_line_with_a_remedy_where_there_is_one() -> None:
    assert sentence(OSError("connection  refused\nby host")) == "connection refused"
    assert sentence(OSError()) == "OSError"
    assert sentence(TimeoutError()) == faults.TIMEOUT
    assert sentence(psycopg.OperationalError("server is in hot standby mode")) == faults.NO_PRIMARY


def test_an_error_as_an_outage_keeps_what_is_known() -> None:
    one = Outage("x", "moved", is_unknown=False)
    assert outage(one, is_unknown=True) is one
    made = outage(error("26000"), is_unknown=True)
    assert (str(made), made.kind, made.is_unknown) == (faults.POOLER, "pooler", True)
