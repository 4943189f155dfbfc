"""The judge of the SDK's clients finds nothing in a right run, and each seeded fault by its name."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.faults import checker
from tests.faults.checker import Acked, Connected, Entry, Got, History, Sent
from tests.fix_server import MakeServer
from tests.js.crowd import Crowd
from tests.js.driven import Driven, Gap, NodeClients
from tests.js.judge import as_pushed, judge_shown, judge_told
from tests.js.test_gates import needs_node
from tests.until import until

SAID = 30
LOG = {
    "1": [
        Entry(1, 10, "ann", "x1", "message", None, "one"),
        Entry(2, 11, "ben", "y1", "message", None, None),
        Entry(3, 12, "ann", "x2", "edit", 1, "one, edited"),
        Entry(4, 13, "ben", "y2", "delete", 2, None),
        Entry(5, 14, "ben", "y3", "message", None, "three"),
    ]
}
WHO = {"1": {"ann", "ben"}}
SHOWN = [[1, "ann", "one, edited", False], [2, "ben", None, False], [5, "ben", "three", False]]


def got(seq: int) -> Got:
    e = LOG["1"][seq - 1]
    return Got("1", e.seq, e.ts, e.sender, e.kind, e.ref, e.body, e.cid)


def client(*events: checker.Event, gaps: tuple[Gap, ...] = ()) -> Driven:
    driven = Driven("ann", "ann-1", asyncio.Event())
    driven.history.events += [Sent("x1", "ben", "message", None, "one"), Sent("x2", "ben", "edit", None, "one, edited")]
    driven.history.events += events
    driven.gaps += gaps
    return driven


def found(one: Driven, *, lives: bool = True) -> dict[str, int]:
    return checker.counts(judge_told([one], [one] if lives else [], LOG, WHO))


def test_a_right_run_has_no_findings() -> None:
    assert found(client(*map(got, range(1, 6)), Acked("1", 1, 10, "x1", True))) == {}
    assert found(client(got(4), got(5))) == {}, "a tab that was opened late"
    assert found(client(got(1)), lives=False) == {}, "one that died"
    assert found(client(got(1), got(2), got(3), got(4), got(5), gaps=(Gap("1", 1, 3),))) == {}


@pytest.mark.parametrize(
    ("seqs", "what"), [((1, 2, 4, 5), "missing"), ((1, 2, 2, 3, 4, 5), "twice"), ((1, 3, 2, 4, 5), "order")]
)
def test_what_a_client_was_told_wrongly_is_found(seqs: tuple[int, ...], what: str) -> None:
    assert what in found(client(*map(got, seqs)))
    assert "order" in found(client(*map(got, seqs)), lives=False)


def test_an_own_change_may_name_its_message_by_the_cid() -> None:
    one = client(got(1), got(2), got(3)._replace(ref=None), got(4), got(5))
    assert "body" in found(one)
    one.refcids["1", 3] = "x1"
    assert found(one) == {}
    one.refcids["1", 3] = "y1"
    assert "body" in found(one)


def test_a_text_of_a_tab_that_died_before_it_told_of_it_is_no_finding() -> None:
    one = client(*map(got, (1,)), got(2)._replace(body="said in the last moment"))
    assert found(one, lives=False) == {"body": 1}
    one.unreported.add("said in the last moment")
    assert found(one, lives=False) == {"body": 1}, "it lives, and would have told"
    one.has_ended = True
    assert found(one, lives=False) == {}


def test_what_was_to_be_fetched_and_was_not_is_found() -> None:
    assert "missing" in found(client(got(1), got(4), got(5), gaps=(Gap("1", 1, 3),)))


def test_what_was_sent_and_never_arrived_is_found_of_those_who_live() -> None:
    lost = client(Sent("x9", "ben", "message", None, "lost"))
    assert found(lost) == {"lost": 1}
    assert found(lost, lives=False) == {}


def test_a_connection_begins_behind_a_gap() -> None:
    events = as_pushed(History("ann", "1", [got(1), got(2), got(3)]), [Gap("1", 1, 2)]).events
    assert events[:2] == [Connected({"1": 0}), got(1)]
    assert events[2:] == [got(2)._replace(paged=True), Connected({"1": 2}), got(3)]


@pytest.mark.parametrize("wrong", [SHOWN[:2], SHOWN + SHOWN[:1], SHOWN[::-1], [*SHOWN[:2], [5, "ben", "3", False]]])
def test_what_is_shown_wrongly_is_found(wrong: list[list[object]]) -> None:
    history = History("ann", "1")
    assert judge_shown(history, "ben", SHOWN, LOG, WHO) == []
    assert [one.what for one in judge_shown(history, "ben", wrong, LOG, WHO)] == ["shown"]


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize(
    ("fault", "what"),
    [("", set()), ("lose", {"missing"}), ("double", {"twice"}), ("swap", {"order"}), ("hide", {"shown"})],
)
async def test_a_client_that_falsifies_is_found(
    make_server: MakeServer, fresh_db: str, driven_build: Path, fault: str, what: set[str]
) -> None:
    server = await make_server(database_url=fresh_db, rate_messages=1_000)
    specs = [
        {"url": server.url, "token": server.token(user), "user": user, "device": user, "fault": its}
        for user, its in (("ann", fault), ("ben", ""))
    ]
    changed = asyncio.Event()
    async with NodeClients(driven_build, specs, changed) as node:
        crowd = Crowd(node.clients, [], {"ann": ["ben"], "ben": ["ann"]}, random.Random(1), 0.01)
        crowd.view_s = 1.0
        for one in node.clients:
            await one.ask("start")
        crowd.start()
        await until(lambda: crowd.acked >= SAID, changed=changed)
        await crowd.quiet()
        await until(lambda: not any(one.unanswered for one in node.clients), changed=changed)
        findings = await crowd.verdict(fresh_db)
    assert what <= {one.what for one in findings}
    assert findings == [] or what, findings[:5]
