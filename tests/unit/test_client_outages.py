"""What a person is told of a connection that makes them wait."""

from __future__ import annotations

import io

from chatd.client import Line
from chatd.client.outages import Outages

UP, TRIES = Line("online"), Line("connecting")
CUT = Line("offline", "lost", 0.0)
NOBODY = Line("offline", "unreachable", 1.5, "ws://h/ws: refused \x1b[2J")


def told(*lines: Line) -> list[str]:
    err = io.StringIO()
    outages = Outages("ws://h/ws", err)
    for line in lines:
        outages(line)
    return err.getvalue().splitlines()


def test_an_outage_is_told_once_and_so_is_its_end() -> None:
    waits = r"chatd: cannot connect to ws://h/ws: refused \x1b[2J; trying again until it can be reached"
    assert told(TRIES, NOBODY, TRIES, NOBODY, TRIES, UP) == [waits, "chatd: connected"]
    assert told(NOBODY, UP, CUT, TRIES, NOBODY, UP) == [waits, "chatd: connected"] * 2


def test_a_cut_that_the_next_try_mends_is_not_told() -> None:
    assert told(TRIES, UP, CUT, TRIES, UP) == []


def test_a_stream_that_is_closed_is_no_reason_to_end() -> None:
    err = io.StringIO()
    err.close()
    Outages("ws://h/ws", err)(NOBODY)
