"""The feed's rules without a database: what to ask, what a page means, when all are caught up, and
what is old.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatd.cluster import change_feed as feeding
from chatd.cluster.change_feed import (
    BACKOFF_MAX_S,
    BACKOFF_S,
    BEHIND_S,
    CHUNK_CONVS,
    KEEP_S,
    NOTHING_PRUNED,
    PRUNE_ROWS,
    PRUNE_S,
    SLICE,
    XIDS_AGAIN,
    ChangeFeed,
    Position,
    chunks,
)
from chatd.core.feed_filter import FeedFilter
from chatd.errors import Unavailable
from chatd.ids import ConvId, UserId
from chatd.metrics import Metrics
from chatd.postgres.change_feed_reader import CURSORS, ENTRIES, FeedChanges, FeedPage, decode
from chatd.postgres.rows import ConvRow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOUR_MS = 3_600_000
ALICE, BOB = UserId("alice"), UserId("bob")


def page(
    snapshot: str,
    now_ms: int = HOUR_MS,
    *,
    reconnected: bool = False,
    heads: Any = (),
    cursors: Any = (),
    new: Any = (),
) -> FeedPage:
    return FeedPage(
        snapshot,
        now_ms,
        0.001,
        len(heads) + len(cursors),
        reconnected,
        FeedChanges(list(heads), list(cursors), list(new)),
    )


def row(id: int, head: int = 1, *cursors: int) -> ConvRow:
    a_delivered, a_read, b_delivered, b_read = cursors or (0, 0, 0, 0)
    return ConvRow(ConvId(id), ALICE, BOB, head, 1, head, 0, HOUR_MS, a_delivered, a_read, 0, b_delivered, b_read)


# ---- rows ----------------------------------------------------------------------------------------


def test_rows_are_decoded_by_their_kind() -> None:
    told = decode(
        [(ENTRIES, [7, -9, 8, 30, 1, 5]), (CURSORS, [7, 9, 11, 12, 21, 22, 31, 32, 41, 42]), (ENTRIES, [7, 31])]
    )
    assert told.heads == [(7, 30), (9, 1), (8, 5), (7, 31)]
    assert told.cursors == [(7, 11, 21, 31, 41), (9, 12, 22, 32, 42)]
    assert told.new == [9]


def test_a_kind_of_a_later_release_is_passed_over() -> None:
    assert decode([(2, [1, 2, 3]), (ENTRIES, [1, 2])]) == FeedChanges([(ConvId(1), 2)], [], [])


# ---- position ------------------------------------------------------------------------------------


def started(now: float = 100.0) -> Position:
    position = Position()
    assert position.took(position.query(now), page("90:95:90,92", reconnected=True)) == 0, (
        "what was held before the first page has no mark"
    )
    return position


def test_it_asks_for_what_its_last_snapshot_did_not_see() -> None:
    assert Position().query(100.0).snapshot is None
    position = started()
    assert position.query(101.0) == ("90:95:90,92", HOUR_MS + int(BEHIND_S * 1000), 101.0)
    assert position.took(position.query(101.0), page("96:96:", HOUR_MS + 1000)) is None
    assert position.query(102.0) == ("96:96:", HOUR_MS + 1000 + int(BEHIND_S * 1000), 102.0)


@pytest.mark.parametrize(
    ("now", "now_ms", "behind"),
    [
        (100 + BEHIND_S, HOUR_MS + int(BEHIND_S * 1000), False),
        # This machine was suspended, or the database's clock was set
        (101.0, HOUR_MS + int(BEHIND_S * 1000) + 1, True),
        (100 + BEHIND_S + 0.001, HOUR_MS, True),  # the database's was
        (101.0, HOUR_MS - 1_000_000, False),
    ],
)
def test_it_is_behind_by_either_clock(now: float, now_ms: int, behind: bool) -> None:
    position = started()
    since = position.took(position.query(now), page("500000:500000:", now_ms))
    assert since == (0 if behind else None), "from 90 - XIDS_AGAIN on"
    later = position.took(position.query(now + 1), page("500001:500001:", now_ms + 1))
    assert later is None, "it is so once"


def test_a_new_connection_catches_up_and_allows_for_ids_that_come_again() -> None:
    position = started()
    position.took(position.query(101.0), page("500000:500100:500000"))
    question = position.query(102.0)
    assert question.snapshot == "500000:500100:500000", "most of what was missed comes at once, with the first page"
    assert position.took(question, page("500200:500200:", reconnected=True)) == 500_000 - XIDS_AGAIN


def test_a_server_that_knows_less_than_the_last_one_is_believed_and_all_is_looked_up() -> None:
    position = started()
    position.took(position.query(101.0), page("500000:500100:"))
    assert position.took(position.query(102.0), page("500090:500099:", reconnected=True)) == 0
    assert position.query(103.0).snapshot == "500090:500099:"


def test_rows_are_old_when_a_snapshot_of_a_minute_ago_saw_them() -> None:
    position = Position()
    times = [100.0 + n for n in range(200)]
    pruned: list[tuple[float, str, str]] = []
    for now in times:
        position.took(position.query(now), page(f"{now:.0f}:{now:.0f}:", int(now * 1000), reconnected=now == 100.0))
        if (old := position.prunable(now)) is not None:
            pruned.append((now, *old))
            position.pruned(old[1])
    assert pruned[0] == (100 + KEEP_S, NOTHING_PRUNED, "100:100:")
    assert [done for _, done, _ in pruned[1:]] == [upto for _, _, upto in pruned[:-1]], (
        "each begins where the last one ended"
    )
    assert all(now - KEEP_S - PRUNE_S <= float(upto.split(":")[0]) <= now - KEEP_S for now, _, upto in pruned)
    assert len(pruned) >= 10


def test_what_is_not_pruned_is_asked_for_again_and_a_new_connection_forgets_all_snapshots() -> None:
    position = started(100.0)
    assert position.prunable(100 + KEEP_S - 0.1) is None
    assert position.prunable(100 + KEEP_S) == position.prunable(101 + KEEP_S) == (NOTHING_PRUNED, "90:95:90,92")
    position.pruned("90:95:90,92")
    assert position.prunable(102 + KEEP_S) is None, "nothing new is old"
    position.took(position.query(165.0), page("200:200:"))
    position.took(position.query(166.0), page("210:210:", reconnected=True))
    assert position.prunable(166.0 + KEEP_S - 0.1) is None, "ids of before may have been given out again"
    assert position.prunable(166.0 + KEEP_S) == (NOTHING_PRUNED, "210:210:")


# ---- chunks --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 40)), st.integers(1, 30))
def test_chunks_hold_every_user_once_and_are_bounded(sizes: list[int], convs: int) -> None:
    users = [(UserId(f"u{n}"), size) for n, size in enumerate(sizes)]
    got = chunks(users, convs)
    assert [user for chunk in got for user in chunk] == [user for user, _ in users]
    sums = [[sizes[int(user[1:])] for user in chunk] for chunk in got]
    assert all(sum(one[:-1]) + len(one) - 1 < convs for one in sums), "only the last one of a chunk may go beyond"


# ---- the loop ------------------------------------------------------------------------------------


class Source:
    """Answers what it was given, or fails; keeps what it was asked."""

    def __init__(self) -> None:
        self.pages: list[FeedPage] = []
        self.away = False
        self.rows: list[ConvRow] = []
        self.gone: int | None = 0
        self.asked: list[tuple[Any, ...]] = []
        self.read = asyncio.Event()
        self.meanwhile: Callable[[], object] = lambda: None  # while the feed is read

    def _ask(self, *what: Any) -> None:
        self.read.set()
        if self.away:
            raise Unavailable("away", retry_ms=1)
        self.asked.append(what)

    async def feed(self, snapshot: str | None, until_ms: int, wanted: bytes) -> FeedPage:
        self._ask("feed", snapshot)
        self.meanwhile()
        return self.pages.pop(0) if self.pages else page(snapshot or "1:1:")

    async def states(self, users: Sequence[UserId], since: str) -> list[ConvRow]:
        self._ask("states", *users, since)
        return self.rows

    async def states_page(self, user: UserId, after: UserId) -> tuple[list[ConvRow], UserId | None]:
        self._ask("page", user, after)
        n = int(after or 0)
        return [row(n + k, 3, 1, 1, 3, 2) for k in (1, 2)], UserId(str(n + 2)) if n < 4 else None

    async def states_of(self, convs: Sequence[ConvId]) -> list[ConvRow]:
        self._ask("states_of", *convs)
        return self.rows

    async def feed_prune(self, done: str, upto: str, rows: int) -> int | None:
        self._ask("prune", done, upto)
        return self.gone


class Owner:
    """A feed, what it told, and its clock."""

    def __init__(self) -> None:
        self.source = Source()
        self.metrics = Metrics()
        self.now = 100.0
        self.interval = 1.0
        self.users: list[tuple[UserId, int]] = []
        self.told: list[tuple[Any, ...]] = []
        self.wanted = FeedFilter({})
        self.change_feed = ChangeFeed(
            self.source,
            self.metrics,
            now=lambda: self.now,
            interval_s=lambda: self.interval,
            heads=lambda heads: self.told.append(("heads", *heads)),
            cursors=lambda cursors: self.told.append(("cursors", *cursors)),
            found=lambda rows: self.told.append(("found", *(row.id for row in rows))),
            clock=lambda ms, rtt: self.told.append(("clock", ms, rtt)),
            users=lambda: self.users,
            wanted=self.wanted,
        )

    async def turns(self, until: float) -> None:
        """Let time pass, and the feed do what is due."""
        while (due := await self.change_feed.turn()) <= until:
            self.now = max(self.now, due)
        self.now = until

    def take(self) -> list[tuple[Any, ...]]:
        told, self.told = self.told, []
        return [one for one in told if one[0] != "clock"]


@pytest.fixture
async def owner() -> Owner:
    return Owner()


async def test_a_page_is_told_and_the_next_one_asked_for_an_interval_later(owner: Owner) -> None:
    owner.source.pages = [
        page("10:10:"),
        page("12:12:", HOUR_MS + 1000, heads=[(1, 5), (2, 6)], cursors=[(1, 1, 2, 3, 4)]),
    ]
    assert await owner.change_feed.turn() == 101.0
    assert await owner.change_feed.turn() == 101.0, "nothing is due"
    owner.now = 101.0
    owner.interval = 0.2
    assert await owner.change_feed.turn() == pytest.approx(101.2)
    assert owner.source.asked == [("feed", None), ("feed", "10:10:")]
    assert owner.told == [
        ("clock", HOUR_MS, 0.001),
        ("clock", HOUR_MS + 1000, 0.001),
        ("heads", (1, 5), (2, 6)),
        ("cursors", (1, 1, 2, 3, 4)),
    ]
    metrics = owner.metrics
    assert (owner.change_feed.pages, metrics.feed_reads, metrics.feed_rows, metrics.feed_catchups) == (
        2,
        2,
        3,
        0,
    )


async def test_a_large_page_is_told_in_parts_and_counted_before_the_first(owner: Owner) -> None:
    counted: list[int] = []
    owner.change_feed._heads = lambda heads: counted.append(owner.change_feed.pages)
    owner.source.pages = [page("10:10:", heads=[(n, n) for n in range(3 * SLICE)])]
    other_turns = 0

    async def others() -> None:
        nonlocal other_turns
        while len(counted) < 3:
            other_turns += 1
            await asyncio.sleep(0)

    await asyncio.gather(owner.change_feed.turn(), others())
    assert counted == [1, 1, 1]
    assert other_turns >= 2


async def test_conversations_that_are_new_are_looked_up_also_when_the_first_try_fails(owner: Owner) -> None:
    await owner.turns(100.5)
    owner.source.pages = [page("12:12:", heads=[(7, 1)], new=[7])]
    look = owner.source.states_of

    async def fails(convs: Sequence[ConvId]) -> list[ConvRow]:
        raise Unavailable("cut off", retry_ms=1)

    owner.source.states_of = fails  # type: ignore[method-assign]
    owner.now = 101.0
    await owner.change_feed.turn()
    assert owner.take() == [("heads", (7, 1))]
    owner.source.states_of = look  # type: ignore[method-assign]
    owner.source.rows = [row(7, 2, 1, 1, 0, 0)]
    owner.now = 101.0 + BACKOFF_S
    await owner.change_feed.turn()
    assert owner.source.asked[-2:] == [("feed", "12:12:"), ("states_of", 7)]
    assert owner.take() == [("found", 7), ("heads", (7, 2)), ("cursors", (7, 1, 1, 0, 0))]
    await owner.turns(105.0)
    assert [asked for asked in owner.source.asked if asked[0] == "states_of"] == [("states_of", 7)]


async def test_conversations_that_are_held_while_the_feed_is_read_are_looked_up_in_parts(owner: Owner) -> None:
    """The question had no bits of them: the page may lack their rows."""
    await owner.turns(until=100.5)
    owner.source.asked.clear()
    owner.source.rows = [row(7)]

    def held() -> None:
        for conv in range(1, CHUNK_CONVS + 2):
            owner.wanted.add(ConvId(conv))
        owner.source.meanwhile = lambda: None

    owner.source.meanwhile = held
    await owner.turns(until=101.5)
    looked_up = [asked[1:] for asked in owner.source.asked if asked[0] == "states_of"]
    assert looked_up == [tuple(range(1, CHUNK_CONVS + 1)), (CHUNK_CONVS + 1,)]
    assert ("found", 7) in owner.take()
    owner.source.asked.clear()
    await owner.turns(until=102.5)
    assert not [asked for asked in owner.source.asked if asked[0] == "states_of"]


async def test_through_an_outage_the_snapshot_stays_and_it_is_logged_once(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(feeding.log, "warning", lambda event, **_: logged.append(event))
    monkeypatch.setattr(feeding.log, "info", lambda event, **_: logged.append(event))
    owner.source.pages = [page("10:10:")]
    await owner.turns(100.5)
    owner.source.away = True
    pauses = []
    owner.now = 101.0
    for _ in range(8):
        due = await owner.change_feed.turn()
        pauses.append(due - owner.now)
        owner.now = due
    assert pauses == pytest.approx([BACKOFF_S * 2**n for n in range(5)] + [BACKOFF_MAX_S] * 3)
    assert owner.metrics.feed_failed == 8
    owner.source.away = False
    owner.source.pages = [page("12:12:", heads=[(1, 2)], reconnected=True)]
    await owner.change_feed.turn()
    assert owner.source.asked[-1] == ("feed", "10:10:")
    assert owner.take() == [("heads", (1, 2))]
    assert logged == ["feed.late", "feed.back"]
    owner.source.away = True
    owner.now += 1
    assert await owner.change_feed.turn() == pytest.approx(owner.now + BACKOFF_S), "the next outage begins anew"


async def test_catching_up_goes_by_chunks_with_pauses_and_reading_goes_on(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "CHUNK_PAUSE_S", 0.4)
    owner.users = [(UserId(f"u{n}"), 999) for n in range(4)]
    owner.source.pages = [
        page("500000:500000:"),
        page("600000:600000:", HOUR_MS + 10**6),
        page("600001:600001:", HOUR_MS + 10**6, heads=[(9, 9)]),
    ]
    owner.source.rows = [row(5, 3, 1, 1, 3, 2)]
    owner.change_feed._users = list  # nobody is held at the start
    await owner.turns(100.5)
    owner.change_feed._users = lambda: owner.users
    owner.now = 101.0
    await owner.turns(101.9)
    since = str(500_000 - XIDS_AGAIN)
    assert owner.source.asked[-4:] == [("feed", "500000:500000:"), *(("states", f"u{n}", since) for n in range(3))]
    assert owner.take() == 3 * [("found", 5), ("heads", (5, 3)), ("cursors", (5, 1, 1, 3, 2))]
    owner.now = 102.0
    await owner.turns(102.5)
    assert owner.source.asked[-2:] == [("feed", "600000:600000:"), ("states", "u3", since)]
    assert owner.take()[0] == ("heads", (9, 9)), "a reading that is due comes first"
    assert not owner.change_feed.catching_up
    assert owner.metrics.feed_catchups == 1


async def test_a_chunk_that_fails_is_asked_for_again_and_a_second_catch_up_takes_the_older_mark(owner: Owner) -> None:
    owner.source.pages = [page("500000:500000:")]
    await owner.turns(100.5)
    owner.users = [(ALICE, 999), (BOB, 999)]
    owner.source.pages = [page("600000:600000:", reconnected=True)]
    owner.now = 101.0
    await owner.change_feed.turn()
    owner.source.away = True
    assert await owner.change_feed.turn() == pytest.approx(101.0 + BACKOFF_S)
    owner.source.away = False
    owner.source.pages = [page("700000:700000:", reconnected=True)]
    owner.now = 101.0 + BACKOFF_S
    await owner.turns(101.9)
    since = str(500_000 - XIDS_AGAIN)
    assert [asked for asked in owner.source.asked if asked[0] == "states"] == [
        ("states", ALICE, since),
        ("states", BOB, since),
    ]
    assert owner.metrics.feed_catchups == 2


async def test_a_user_who_is_too_much_for_one_query_is_read_by_pages_and_keeps_nobody_back(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge, states = UserId("huge"), owner.source.states
    asked: list[list[UserId]] = []

    async def times_out(users: Sequence[UserId], since: str) -> list[ConvRow]:
        asked.append(list(users))
        if huge in users:
            raise Unavailable("canceling statement due to statement timeout", retry_ms=1)
        return await states(users, since)

    monkeypatch.setattr(owner.source, "states", times_out)
    owner.source.pages = [page("500000:500000:")]
    await owner.turns(100.5)
    owner.users = [(ALICE, 5), (huge, 5), (BOB, 2_000), (UserId("carol"), 5)]
    owner.source.pages = [page("600000:600000:", reconnected=True)]
    owner.now = 101.0
    for _ in range(200):
        owner.now = max(owner.now, await owner.change_feed.turn())
        if owner.source.asked and not owner.change_feed.catching_up:
            break
    assert not owner.change_feed.catching_up
    assert {user for users in asked for user in users if huge not in users} == {ALICE, BOB, UserId("carol")}
    assert [one for one in owner.source.asked if one[0] == "page"] == [
        ("page", huge, after) for after in ("", "2", "4")
    ]


async def test_old_rows_are_taken_out_in_turn_with_other_nodes(owner: Owner) -> None:
    owner.interval = 5.0
    for n in range(40):
        owner.source.pages.append(page(f"{n + 11}:{n + 11}:", HOUR_MS + n * 5_000))

    def prunes() -> list[tuple[Any, ...]]:
        return [asked[1:] for asked in owner.source.asked if asked[0] == "prune"]

    owner.source.gone = None  # another node is at it
    await owner.turns(100.0 + KEEP_S + PRUNE_S)
    assert prunes() == [(NOTHING_PRUNED, "11:11:"), (NOTHING_PRUNED, "13:13:")]
    owner.source.gone = PRUNE_ROWS  # there are more
    await owner.turns(100.0 + KEEP_S + 2 * PRUNE_S + 5)
    assert prunes()[2:] == [(NOTHING_PRUNED, "15:15:"), (NOTHING_PRUNED, "15:15:")]
    owner.source.gone = 17
    await owner.turns(100.0 + KEEP_S + 5 * PRUNE_S)
    assert prunes()[4:] == [(NOTHING_PRUNED, "17:17:"), ("17:17:", "19:19:"), ("19:19:", "21:21:")]


async def test_a_slow_database_is_not_asked_all_the_time(owner: Owner) -> None:
    async def slow(snapshot: str | None, until_ms: int, wanted: bytes) -> FeedPage:
        owner.now += 3.0
        return page("1:1:")

    owner.source.feed = slow  # type: ignore[method-assign]
    assert await owner.change_feed.turn() == 106.0


async def test_it_can_be_woken(owner: Owner) -> None:
    owner.interval = 1_000_000.0
    task = asyncio.create_task(owner.change_feed.run())
    try:
        async with asyncio.timeout(10):
            for n in (1, 2, 3):
                owner.source.read.clear()
                if n > 1:
                    owner.change_feed.wake()
                await owner.source.read.wait()
                await asyncio.sleep(0)
                assert owner.metrics.feed_reads == n
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
