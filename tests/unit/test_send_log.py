"""What the pipeline of sends says in the log, and how often."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import structlog

from chatd import errors
from chatd import log as logs
from chatd.chat import send_log
from chatd.chat.send_log import HITS_LOGGED_BURST, HITS_LOGGED_PER_S, SendLines
from chatd.core.batch import Item
from chatd.core.conversation import Conversation
from chatd.core.frame_rate import FrameRate
from chatd.core.rate_limit import Penalty, SlidingWindow
from chatd.core.session import Session, User
from chatd.ids import Cid, ConvId, UserId
from chatd.protocol import MESSAGE
from tests.silent import Silent

ALICE, BOB = UserId("alice"), UserId("bob")


def item() -> Item:
    session = Session(Silent(), FrameRate(1, 1), 0.0)
    session.user = User(ALICE, SlidingWindow(10, 5.0), Penalty(8), SlidingWindow(100, 3600.0))
    return Item(session, 7, Conversation(ConvId(3), ALICE, BOB), BOB, 0, Cid("c"), MESSAGE, "hi", None, 0)


def test_hits_of_the_limit_are_told_but_not_all_of_a_flood() -> None:
    lines = SendLines()
    with structlog.testing.capture_logs() as said:
        for _ in range(2 * HITS_LOGGED_BURST):
            lines.limit_hit(item(), 100.0)
        assert len(said) == HITS_LOGGED_BURST
        lines.limit_hit(item(), 100.0 + 1 / HITS_LOGGED_PER_S)
    assert len(said) == HITS_LOGGED_BURST + 1
    assert said[0] == {"event": "limit.hit", "log_level": "info", "user": ALICE, "conv": 3, "again": False}


@pytest.mark.parametrize("is_debug", [False, True])
def test_an_error_is_a_line_at_debug_alone(is_debug: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "DEBUG_ON", is_debug)
    said: list[dict[str, object]] = []
    # A logger of its own: the log's level may have been set by an earlier test.
    own = SimpleNamespace(debug=lambda event, **facts: said.append({"event": event, **facts}))
    monkeypatch.setattr(send_log, "log", own)
    SendLines().refused(item(), errors.DataRefused("no"))
    line = {"event": "send.err", "user": ALICE, "conv": 3, "id": 7, "code": "refused"}
    assert said == ([line] if is_debug else [])


def test_a_bug_is_told_with_what_was_raised() -> None:
    error = ZeroDivisionError()
    with structlog.testing.capture_logs() as said:
        SendLines().bug(ALICE, error)
    assert said == [{"event": "entering.bug", "log_level": "error", "user": ALICE, "exc_info": error}]
