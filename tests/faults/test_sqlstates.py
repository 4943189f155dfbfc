"""Every SQLSTATE at every statement of the node: it lives on, its sessions stay, and only what
speaks of the row refuses the row.


By statement on the parts of a running node: each statement that a part makes is found by running it
once, and fails then by every code (some parts) or by one of each class (the others; all with
SQLSTATES_FULL=1). And a whole node among others, with clients, whose statements fail at random by
all codes in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from chatd import errors
from chatd.ids import ConvId, UserId
from chatd.postgres import connection, mark
from chatd.postgres.connection import Backend
from chatd.postgres.faults import Outage
from chatd.postgres.queries import folder
from chatd.postgres.rows import BEGIN
from chatd.store import Locked
from tests.faults.sqlstates import CLASSES, CODES, KNOWN, Injector, installed, is_data
from tests.fix_server import until_ready
from tests.sweeping import sweeping
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.fix_redis import OwnRedis
    from tests.fix_server import MakeServer, Server

FULL = os.environ.get("SQLSTATES_FULL") == "1"
ENDINGS = ("57P01", "53300", "25006")  # as FATAL, with the connection
ASKED = ("resolve", "resolve, known")  # a client chose the values
FEED = ("feed", "states", "states_of", "feed_prune")  # no client asks these: each failure is tried again
FAST = {
    "rate_messages": 10_000,
    "frames_per_s": 100_000,
    "frames_burst": 100_000,
    "new_conversations_per_hour": 10_000,
    "cursor_flush_ms": 50,
}
ALICE, BOB = UserId("alice"), UserId("bob")


@pytest.fixture
def db(make_db: Callable[[], str]) -> str:
    return make_db()


@pytest.fixture
def injector(db: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Injector]:
    with installed(monkeypatch, db) as one:
        yield one


def test_all_codes_of_postgresql_are_tried() -> None:
    assert len(KNOWN) > 240
    assert {code[:2] for code in KNOWN} <= {code[:2] for code in CLASSES}
    assert {"25006", "42501", "53100", "57P01", "XX001", "22P05", "40001", "55P03"} <= set(KNOWN)


_names = itertools.count(1)


def parts(server: Server) -> dict[str, Callable[[], Awaitable[object]]]:
    """What the node asks of PostgreSQL, by part; each can be repeated."""
    node, store = server.node, server.node.store
    conv = next(iter(node.registry.convs.values()))

    async def cursors() -> None:
        store.cursor_moved(conv)
        await store.flush()

    async def users() -> None:
        store.user_seen(ALICE, node._clock.now_ms())
        await store.flush()

    async def swept() -> None:
        for asked_at in (float("-inf"), float("inf")):  # the sizes of the tables, then what changed
            sweeping(store)  # also after one that failed
            store.sweeps._sizes_at = asked_at
            await store.swept(ALICE, str(mark.of_all(store.epoch)))

    return {
        "resolve": lambda: store.resolve([(ALICE, UserId(f"bob{next(_names)}"))], [None]),
        "resolve, known": lambda: store.resolve([(ALICE, BOB)], [BOB], 10),
        "list_changed": lambda: store.list_changed(ALICE, "0", BEGIN, True, []),
        "swept": swept,
        "list_conversations": lambda: store.list_conversations(ALICE, [ConvId(1)]),
        "list_recent": lambda: store.list_recent(ALICE),
        "load_conversations": lambda: store.load_conversations([ConvId(1)], [(ALICE, BOB)]),
        "open_pairs": lambda: store.open_pairs([(ALICE, BOB)]),
        "entries_before": lambda: store.entries_before(conv.id, 10, 1, 10),
        "entries_after": lambda: store.entries_after(conv.id, 0, 10, 10),
        "entries_many": lambda: store.entries_many([(conv.id, 0, 10)], 10),
        "alive": lambda: store.alive([Backend(1, 1)]),
        "heads": lambda: store.heads([conv.id]),
        "heads_decided": lambda: store.heads_decided([conv.id]),
        "seen": lambda: store.seen([ALICE]),
        "user_known": lambda: store.is_known(ALICE),
        "ping": store.ping,
        "partitions_left": store.partitions_left,
        "make_partition": store.make_partition,
        "cursors": cursors,
        "users": users,
        "feed": lambda: store.feed(None, 0),
        "states": lambda: store.states([ALICE], "0"),
        "states_of": lambda: store.states_of([conv.id]),
        "feed_prune": lambda: store.feed_prune("1:1:", "2:2:", 10),
    }


async def traced(injector: Injector, part: Callable[[], Awaitable[object]]) -> list[str]:
    """The statements that a part makes."""
    injector.seen.clear()
    await part()
    return list(injector.seen)


def is_opening(text: str) -> bool:
    """A statement of a new connection (postgres/connection.py)."""
    return "set_config($3" in text or "server_encoding" in text or text == connection.SIGHT


async def outcome(work: Awaitable[object]) -> BaseException | None:
    """What it raised."""
    (result,) = await asyncio.gather(work, return_exceptions=True)
    return result if isinstance(result, BaseException) else None


def codes_for(name: str, n: int) -> tuple[str, ...] | list[str]:
    return CODES if FULL or (n == 0 and name in ("resolve", "entries_before", "heads", "feed")) else CLASSES


async def test_reads_and_flushes_and_the_feed_refuse_and_nothing_else(
    make_server: MakeServer, db: str, injector: Injector
) -> None:
    server = await make_server(database_url=db, **FAST)
    alice, _ = await server.connect("alice"), await server.connect("bob")
    await alice.say("bob")
    for name, part in parts(server).items():
        for n, text in enumerate(text for text in await traced(injector, part) if not is_opening(text)):
            cases = [(code, False) for code in codes_for(name, n)] + [(code, True) for code in ENDINGS]
            for code, ends in cases:
                with injector.armed(code, text, ends=ends):
                    error = await outcome(part())
                assert error is None or isinstance(error, errors.Retryable | errors.DataRefused | Locked), (
                    name,
                    code,
                    error,
                )
                if not ends and name not in FEED:
                    assert isinstance(error, errors.DataRefused) == (is_data(code) and name in ASKED), (
                        name,
                        code,
                        error,
                    )
        await part()  # and works again at once
    assert (await alice.say("bob"))["t"] == "ok"
    assert not server.node.tasks.failed.done()


async def test_a_lane_refuses_the_row_for_data_and_is_unavailable_for_all_else(
    make_server: MakeServer, db: str, injector: Injector
) -> None:
    server = await make_server(database_url=db, **FAST)
    alice, _ = await server.connect("alice"), await server.connect("bob")
    first = await alice.say("bob")
    statements = [text for text in await traced(injector, lambda: alice.say("bob")) if "append(" in text]
    assert len(statements) == 1
    for n, code in enumerate(CODES):
        cid, request = str(uuid.uuid4()), {"t": "send", "to": "bob", "body": "x"}
        if n % 3 == 0:  # edits go another way through the batch
            request = {"t": "edit", "c": first["c"], "ref": first["seq"], "body": f"{n}"}
        kind = request.pop("t")
        with injector.armed(code, statements[0], ends=code in ENDINGS):
            answer = await alice.request(kind, cid=cid, **request)
        assert (answer["t"], answer["code"]) == (
            "err",
            "refused" if is_data(code) and code not in ENDINGS else "unavailable",
        ), (code, answer)
        if answer["code"] == "unavailable":
            assert answer["retry_ms"] > 0

            async def taken() -> bool:
                again = await alice.request(kind, cid=cid, retry=True, **request)
                assert again["t"] == "ok" or again["code"] == "unavailable", (code, again)
                return bool(again["t"] == "ok")

            await until(taken, pause_s=0.01)
    assert not server.node.tasks.failed.done()


async def test_one_bad_row_of_a_batch_is_refused_alone(make_server: MakeServer, db: str, injector: Injector) -> None:
    """What the codes of data mean: the batch is halved, and the others are written.

    A trigger is the fault's source here.
    """
    server = await make_server(database_url=db, **FAST)
    with psycopg.connect(db, autocommit=True) as admin:
        admin.execute(
            "CREATE FUNCTION bad() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN IF NEW.body = 'bad' THEN RAISE EXCEPTION 'no' USING ERRCODE = '22023'; END IF; RETURN NEW; END"
            " $$"
        )
        admin.execute("CREATE TRIGGER bad BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION bad()")
    alice = await server.connect("alice")
    ids = [
        await alice.post("send", to=f"peer{n}", cid=str(uuid.uuid4()), body="bad" if n == 7 else "good")
        for n in range(20)
    ]
    answers: dict[int, str] = {}
    while len(answers) < len(ids):
        frame = await alice.recv()
        answers[frame["id"]] = str(frame.get("code", frame["t"]))
    assert [answers[id] for id in ids] == ["refused" if n == 7 else "ok" for n in range(20)]


async def test_retention_the_watch_and_the_opener_outlive_each_code(
    make_server: MakeServer, db: str, injector: Injector
) -> None:
    server = await make_server(database_url=db, **FAST)
    node = server.node
    node.census.is_serving = True

    async def opens() -> None:
        await connection.close(await node.store.opener.open("test", connection.LANE, 5.0))

    async def looks() -> None:
        node.census._looked_at = float("-inf")
        node.census._registered_on = None
        await node.store.watch._look()

    for part in (node.retention._pass, looks, opens):
        node.retention._oldest = "another"  # it reads floors then
        texts = await traced(injector, part)
        # The node's own watch looks now and then, in a task of its own
        own = [text for text in texts if asyncio.current_task() in injector.seen[text]]
        assert own
        for text in own:
            for code in CODES if FULL or part == looks else CLASSES:
                with injector.armed(code, text), contextlib.suppress(psycopg.Error, Outage):
                    await part()
                    assert part == node.retention._pass, (text, code)
        await part()
    assert injector.codes == set(CODES)
    await until_ready(node)
    assert not node.tasks.failed.done()


async def test_every_query_of_the_product_is_among_those_tried(
    make_server: MakeServer, db: str, injector: Injector, own_redis: OwnRedis
) -> None:
    """The sweep is whole: each file of sql/queries is asked by a part above, or by a start."""
    server = await make_server(database_url=db, redis_url=own_redis.url, **FAST)
    alice, bob = await server.connect("alice"), await server.connect("bob")
    await alice.say("bob")
    node = server.node
    node.retention._oldest = "another"
    await node.retention._pass()
    for part in parts(server).values():
        await part()
    node.census._looked_at = float("-inf")
    await node.store.watch._look()
    asked = {text.strip() for text in injector.seen}
    files = {path.stem: path.read_text() for path in (folder() / "queries").glob("*.sql")}
    missing = {name for name, text in files.items() if not any(body(text) in body(one) for one in asked)}
    # Where a partition is dropped: test_retention.py. Where a flush has met a lock:
    # test_interleavings_store.py. By a command: test_user_show.py. With a replica: test_replica.py.
    replica = {"history_proven", "replica_position", "replica_sight"}
    assert missing <= {"raise_floors", "cursors_locked", "users_locked", "user_report"} | replica
    assert (await bob.request("ping"))["t"] == "pong"


def body(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("--")).strip()


@pytest.mark.cluster
async def test_a_whole_node_lives_while_all_its_statements_fail_at_random_by_all_codes(
    make_server: MakeServer, db: str, injector: Injector, own_redis: OwnRedis
) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    server = await make_server(database_url=db, redis_url=own_redis.url, **FAST)
    peers = [await server.connect(f"user{n}", watch=["user0"]) for n in range(4)]
    for peer in peers[1:]:
        await peer.say("user0")
    codes = itertools.cycle(dice.sample(CODES, len(CODES)))
    # Fewer when a connection is opened, or none is ever had.
    injector.choose = lambda text: next(codes) if dice.random() < (0.1 if is_opening(text) else 0.4) else None
    acked: list[str] = []

    async def talks(n: int) -> None:
        peer = peers[n]
        for k in range(40):
            cid, to = str(uuid.uuid4()), f"user{n}-{k}" if k % 3 == 0 else "user0"
            for _ in range(3):
                answer = await peer.say(to, f"{n} {k}", cid=cid, retry=True)
                if answer["t"] == "ok":
                    acked.append(cid)
                    break
                assert answer["code"] in ("unavailable", "refused", "blocked", "overloaded"), answer
            for kind, keys in (
                ("history", {"to": to}),
                ("conversations", {}),
                ("watch", {"users": ["user0", "user1"]}),
            ):
                answer = await peer.request(kind, **keys)
                assert answer["t"] in ("ok", "history", "conversations") or answer["code"] in ERRORS, answer

    async with asyncio.timeout(60):
        await asyncio.gather(*(talks(n) for n in range(4)))

        async def all_met() -> bool:
            server.node.retention.wake()
            await server.node.readiness.problems()
            return injector.codes == set(CODES)

        await until(all_met, pause_s=0.02, within_s=60)
    injector.disarm()
    assert not server.node.tasks.failed.done()
    await until_ready(server.node)
    for n, peer in enumerate(peers):
        assert peer.ws.close_code is None, "sessions stay"
        assert (await peer.say(f"after{n}"))["t"] == "ok"
    with psycopg.connect(db) as conn:
        stored = {str(cid) for (cid,) in conn.execute("SELECT cid FROM entries")}
    assert set(acked) <= stored
    print(f"{sum(injector.injected.values())} errors at {len(injector.injected)} statements")


ERRORS: Any = ("unavailable", "overloaded", "refused", "no_conversation")
