"""What holds over nodes whichever a user talks to: rates, penalties and new conversations; reads
and changes of what another node wrote; clocks.

And what nodes do one at a time: migrations and retention. And what one node alone never touches:
Redis and the feed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from websockets.exceptions import ConnectionClosed

from chatd.chat.auth import KeySet, issue
from chatd.ids import UserId
from chatd.postgres import migrate
from tests.client import Frame, Peer, peer_at
from tests.cluster.test_fanout import befriend, watch_online
from tests.cluster.traffic import metrics, nodes_of, together, told
from tests.fix_cluster import SKEWED, Nodes
from tests.fix_process import MakeProcess, Process
from tests.fix_redis import OwnRedis
from tests.ports import free_port
from tests.until import until

pytestmark = pytest.mark.cluster

# A shared machine can stand still for 50 ms, and then each node goes by its own count: not what
# these tests are about.
PATIENT = (
    "from chatd.cluster.shared_limits import SharedLimits; SharedLimits.__init__.__kwdefaults__['deadline_s'] = 5.0"
)
MESSAGES, PERIOD_S = 10, 5.0
SKEW_S = 30
TOKEN_EXPIRED, REPLACED, RATE_LIMITED = 4002, 4004, 4008


async def limited(make_process: MakeProcess, database_url: str, redis: OwnRedis, n: int = 2, **settings: Any) -> Nodes:
    """Nodes with the limits that users have by default."""
    defaults = {"rate_messages": MESSAGES, "new_conversations_per_hour": 100}
    nodes = await nodes_of(n, make_process, database_url, redis.url, before=[PATIENT] * n, **{**defaults, **settings})
    await together(nodes)
    return nodes


async def burst(peer: Peer, to: str, n: int) -> list[Frame]:
    """The replies to `n` sends at once, in their order."""
    ids = [await peer.post("send", to=to, cid=str(uuid.uuid4()), body="x") for _ in range(n)]
    replies: dict[int, Frame] = {}
    while not replies.keys() >= set(ids):
        frame = await peer.recv()
        replies[frame.get("id", 0)] = frame
    return [replies[id] for id in ids]


# ---- rates ---------------------------------------------------------------------------------------


async def test_ten_in_five_seconds_over_two_devices_on_two_nodes(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    nodes = await limited(make_process, fresh_db, own_redis)
    async with peer_at(nodes[0], "alice", "phone") as phone, peer_at(nodes[1], "alice", "tablet") as tablet:
        began = time.monotonic()
        floods = await asyncio.gather(burst(phone, "bob", 2 * MESSAGES), burst(tablet, "bob", 2 * MESSAGES))
        ended = time.monotonic()
        assert sum(reply["t"] == "ok" for replies in floods for reply in replies) == MESSAGES
        refused = [next(reply for reply in replies if reply["t"] == "err") for replies in floods]
        assert {reply["code"] for reply in refused} == {"rate_limited"}
        for reply in refused:
            assert PERIOD_S - (ended - began) - 0.1 < reply["retry_ms"] / 1000 <= PERIOD_S + 0.01
        assert {reply["code"] for replies in floods for reply in replies if reply["t"] == "err"} == {
            "rate_limited",
            "blocked",
        }

        async def keep(peer: Peer, replies: list[Frame]) -> list[Frame]:
            """Wait as told, and send the one again that was refused."""
            error = next(reply for reply in replies if reply["t"] == "err")
            await asyncio.sleep(error["retry_ms"] / 1000)
            blocked = await peer.say("bob")
            return [await peer.say("bob", cid=blocked["cid"], retry=True)]

        again = await asyncio.gather(keep(phone, floods[0]), keep(tablet, floods[1]))
        assert [reply[0]["t"] for reply in again] == ["ok", "ok"], "whoever waits as long as told gets through"
    for node in nodes.nodes:
        assert (await metrics(node))["chatd_quota_local_total"] == 0


async def test_a_user_who_moves_gets_no_fresh_ten_and_their_penalty_moves_with_them(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    nodes = await limited(make_process, fresh_db, own_redis, n=3, rate_per_ms=20_000)
    sent = 0
    for home in (0, 1, 2, 1, 0):
        async with peer_at(nodes[home], "alice") as alice:
            sent += [reply["t"] for reply in await burst(alice, "bob", 2)].count("ok")
    assert sent == MESSAGES
    began = time.monotonic()
    async with peer_at(nodes[1], "alice") as alice:
        cid = str(uuid.uuid4())
        refused = await alice.say("bob", cid=cid)
        assert (refused["code"], refused["retry_ms"] <= 20_000) == ("rate_limited", True)
        penalty = await alice.say("bob", cid=cid)  # much too early
        passed_ms = (time.monotonic() - began) * 1000
        assert penalty["retry_ms"] > refused["retry_ms"] + 1_000 - passed_ms
    async with peer_at(nodes[2], "alice") as alice:
        for peer in ("carol", "dave"):
            elsewhere = await alice.say(peer)
            assert elsewhere["code"] == "rate_limited"
            passed_ms = (time.monotonic() - began) * 1000
            assert refused["retry_ms"] + 1_000 - passed_ms < elsewhere["retry_ms"] <= penalty["retry_ms"], (
                "the other node knows of the penalty"
            )


async def test_hammering_from_node_to_node_is_ended_by_the_strikes_of_all(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    nodes = await limited(make_process, fresh_db, own_redis, rate_messages=1, rate_per_ms=60_000, rate_penalties_max=5)
    async with peer_at(nodes[0], "alice", "phone") as phone, peer_at(nodes[1], "alice", "tablet") as tablet:
        assert (await phone.say("bob"))["t"] == "ok"
        cids = {phone: str(uuid.uuid4()), tablet: str(uuid.uuid4())}
        strikes = 0
        code = None
        for peer in itertools.cycle((phone, tablet)):
            try:
                assert (await peer.say("bob", cid=cids[peer]))["code"] == "rate_limited"
            except ConnectionClosed as e:
                code = e.rcvd and e.rcvd.code
                break
            strikes += 1
        assert code == RATE_LIMITED
        assert strikes <= 2 + 7, "each device's first is no strike; and a node may be one behind the other"


async def test_with_redis_stopped_each_node_counts_alone_and_says_so(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    nodes = await nodes_of(2, make_process, fresh_db, own_redis.url, rate_messages=MESSAGES, rate_per_ms=60_000)
    await together(nodes)
    async with peer_at(nodes[0], "alice", "phone") as phone, peer_at(nodes[1], "alice", "tablet") as tablet:
        own_redis.kill()
        took = []
        for node, peer in ((nodes[0], phone), (nodes[1], tablet)):
            for n in range(MESSAGES + 1):
                began = time.monotonic()
                reply = await peer.say("bob")
                took.append(time.monotonic() - began)
                assert reply["t"] == ("ok" if n < MESSAGES else "err"), n
            assert reply["code"] == "rate_limited"
            said = await metrics(node)
            assert said["chatd_quota_open"] == 1
            assert said["chatd_quota_local_total"] >= MESSAGES
        print(f"the slowest answer came after {max(took) * 1000:.0f} ms")
        own_redis.start()
        await together(nodes)


async def test_new_conversations_count_whichever_node_makes_them(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    nodes = await limited(make_process, fresh_db, own_redis, new_conversations_per_hour=3, rate_messages=1000)
    for n, home in enumerate((0, 1, 0)):
        async with peer_at(nodes[home], "alice") as alice:
            assert (await alice.say(f"friend{n}"))["t"] == "ok"
    for home in (1, 0, 1):
        async with peer_at(nodes[home], "alice") as alice:
            refused = await alice.say("one too many")
            assert (refused["code"], 3_500_000 < refused["retry_ms"] <= 3_600_001) == ("too_many_conversations", True)
            assert (await alice.say("friend0"))["t"] == "ok", "what is there costs nothing"


# ---- what another node wrote ---------------------------------------------------------------------


async def test_reads_changes_and_tokens_work_on_a_node_that_wrote_nothing(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    nodes = await nodes_of(2, make_process, fresh_db, own_redis.url)
    await together(nodes)
    async with (
        peer_at(nodes[0], "alice", "phone") as phone,
        peer_at(nodes[1], "alice", "tablet") as tablet,
        peer_at(nodes[0], "bob") as bob,
    ):
        assert tablet.welcome["conversations"] == []
        for n in range(1, 6):
            ok = await phone.say("bob", f"frist {n}")
        c = ok["c"]
        await phone.say("carol", "later")
        heard: set[tuple[str, int]] = set()
        while not {("bob", 5), ("carol", 1)} <= heard:  # between two conversations there is no order
            entry = await tablet.push("entry")
            heard.add((entry["to"], entry["seq"]))
        page = await tablet.request("history", c=c, limit=3)
        assert ([e["seq"] for e in page["entries"]], page["more"], page["head"]) == ([3, 4, 5], True, 5)
        listed = await tablet.request("conversations")
        assert [(one["peer"], one["head"]) for one in listed["conversations"]] == [("carol", 1), ("bob", 5)]

        edited = await tablet.request("edit", c=c, ref=2, cid=str(uuid.uuid4()), body="first 2")
        gone = await tablet.request("delete", c=c, ref=1, cid=str(uuid.uuid4()))
        assert (edited["seq"], gone["seq"]) == (6, 7)
        assert [((await bob.push("entry"))["seq"]) for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
        page = await bob.request("history", c=c)
        assert [(e["seq"], e["body"]) for e in page["entries"][:2]] == [(1, None), (2, "first 2")]
        not_mine = await bob.request("edit", c=c, ref=3, cid=str(uuid.uuid4()), body="x")
        assert not_mine["code"] == "not_author"

        refreshed = await tablet.request("refresh", token=nodes[0].token("alice"))
        assert refreshed["exp"] > time.time() * 1000 + 3_000_000
        assert (await tablet.request("refresh", token=nodes[0].token("bob")))["code"] == "unauthorized"
        await bob.say("alice")
        await tablet.request("read", c=c, seq=5)
        assert ((seen := await bob.push("receipt"))["from"], seen["read"]) == ("alice", 5)
        assert (await phone.push("receipt"))["read"] == 5


# ---- clocks and names ----------------------------------------------------------------------------


async def skewed(make_process: MakeProcess, database_url: str, redis: OwnRedis, **settings: Any) -> Nodes:
    before = [SKEWED.format(seconds=SKEW_S), SKEWED.format(seconds=-SKEW_S)]
    nodes = await nodes_of(2, make_process, database_url, redis.url, before=before, **settings)
    await together(nodes)
    return nodes


async def test_versions_rise_while_a_user_moves_between_clocks_a_minute_apart(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    nodes = await skewed(make_process, fresh_db, own_redis)
    async with peer_at(nodes[0], "alice", "ahead") as ahead, peer_at(nodes[1], "alice", "behind") as behind:
        async with peer_at(nodes[0], "bob", "old") as bob:
            await befriend(ahead, "alice", bob, "bob")
        watchers = (ahead, behind)
        highest = {}
        for peer in watchers:
            (first,) = (await peer.request("watch", users=["bob"]))["presence"]
            highest[peer] = (first if first["state"] == "offline" else await until_offline(peer))["v"]
            peer.pushes.clear()
        # He is away and online in turn, for a status that does not change is not told; the one
        # before ends after its grace time.
        for n in range(4):
            state = ("online", "away")[n % 2]
            async with peer_at(nodes[n % 2], "bob", f"d{n}", state=state):
                for peer in watchers:
                    while True:
                        facts = await peer.push("presence")
                        assert facts["v"] > highest[peer]
                        highest[peer] = facts["v"]
                        if facts["state"] == state:
                            break
                # A watcher that moves, too: what a node tells now replaces what the other one told
                # before.
                async with peer_at(nodes[(n + 1) % 2], "alice", "third", watch=["bob"]) as third:
                    (now,) = third.welcome["presence"]
                    assert now["state"] == state
        seen = await until_offline(ahead)
        assert abs(seen["seen"] - time.time() * 1000) < 5_000


async def until_offline(peer: Peer) -> Frame:
    while (facts := await peer.push("presence"))["state"] != "offline":
        pass
    return facts


async def test_a_watcher_that_moves_between_clocks_sees_versions_rise(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    nodes = await skewed(make_process, fresh_db, own_redis)
    async with peer_at(nodes[0], "alice") as alice, peer_at(nodes[1], "bob") as bob:
        await befriend(alice, "alice", bob, "bob")
        highest = 0
        for n in range(6):
            async with peer_at(nodes[n % 2], "alice", "moves", watch=["bob"]) as watcher:
                # The same status may have another version here, or come a moment later, by the time
                # that it took to hear of it.
                (now,) = watcher.welcome["presence"]
                while now["state"] != ("online", "away")[n % 2]:
                    now = await watcher.push("presence")
                assert now["v"] > highest - 1_000
                state = ("away", "online")[n % 2]
                await bob.request("presence", state=state)
                facts = await watcher.push("presence")
                assert (facts["state"], facts["v"] > max(highest, now["v"])) == (state, True)
                highest = facts["v"]


async def test_tokens_times_and_takeovers_go_by_one_clock(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    nodes = await skewed(make_process, fresh_db, own_redis, jwt_leeway_s=0)
    ts = 0
    async with peer_at(nodes[0], "alice") as alice, peer_at(nodes[1], "bob") as bob:
        for n in range(6):
            ok = await (alice, bob)[n % 2].say(("bob", "alice")[n % 2], str(n))
            assert ok["ts"] >= ts
            assert abs(ok["ts"] - time.time() * 1000) < 2_000
            ts = ok["ts"]
        for peer in (alice, bob):
            assert abs((await peer.request("ping"))["ts"] - time.time() * 1000) < 2_000
    # The same device here and there: the later one stays, whatever its node's clock says.
    for first, second in ((0, 1), (1, 0)):
        async with peer_at(nodes[first], "carol", "phone") as old, peer_at(nodes[second], "carol", "phone") as new:
            assert await old.closed() == REPLACED
            assert (await new.request("ping"))["t"] == "pong"
            await new.quiet()
    # A short token is good on both, and ends on both when it ends.
    keys = KeySet.development(nodes[0].folder)
    made = time.time()
    token = issue(keys, UserId("dave"), 2, made, None, None)
    async with short_lived(nodes[0], token) as ahead, short_lived(nodes[1], token) as behind:
        assert [await peer.closed() for peer in (ahead, behind)] == [TOKEN_EXPIRED] * 2
        assert time.time() - made > 1.0


def short_lived(node: Process, token: str) -> Any:
    return peer_at(node, "dave", f"on-{node.port}", token=token)


async def test_two_nodes_of_one_name_both_work_and_say_so_once(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    each = [{"node_name": "twin", "lease_ms": 1_000} for _ in range(2)]
    nodes = await nodes_of(2, make_process, fresh_db, own_redis.url, each=each)
    await together(nodes)
    for node in nodes.nodes:
        await until(partial(told, node, "node.same_name"), "it says that another has its name")
    async with peer_at(nodes[0], "alice") as alice, peer_at(nodes[1], "bob") as bob:
        await befriend(alice, "alice", bob, "bob")
        await watch_online(alice, "bob")
    (line,) = told(nodes[0], "node.same_name")
    assert (line["name"], "--node-name" in line["remedy"]) == ("twin", True)


@pytest.mark.slow
async def test_a_node_that_starts_anew_is_no_namesake_of_itself(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    brief = "import chatd.drain; chatd.drain.GRACE_S = 0.1"
    # It is up again while its last life's lease stands.
    nodes = await nodes_of(2, make_process, fresh_db, own_redis.url, before=[brief, brief], lease_ms=3_000)
    await together(nodes)
    nodes[0].kill()
    await nodes[0].start()
    await together(nodes)
    await until(lambda: told(nodes[1], "node.dead"), "its last life is over")
    nodes[0].terminate()
    assert await nodes[0].ended() == 0
    await nodes[0].start()
    await together(nodes)
    await until(lambda: told(nodes[1], "node.left"), "and the one that drained")
    assert len(told(nodes[1], "node.dead")) == 1
    assert [told(node, "node.same_name") for node in nodes.nodes] == [[], []]


# ---- one at a time -------------------------------------------------------------------------------


async def test_nodes_that_start_at_once_on_nothing_migrate_once(
    empty_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    async with await psycopg.AsyncConnection.connect(empty_db, autocommit=True) as conn:
        # So that they come to it at the same time: all of them try, and none may begin.
        await conn.execute("SELECT pg_advisory_lock(%s)", (migrate.LOCK_KEY,))
        starting = asyncio.create_task(nodes_of(3, make_process, empty_db, own_redis.url))

        async def all_wait() -> bool:
            assert not starting.done(), "a node did not wait for its turn"
            cur = await conn.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE"
                " '%pg_try_advisory_lock%'"
                " AND pid <> pg_backend_pid()"
            )
            return await cur.fetchone() == (3,)

        await until(all_wait, "all three want to migrate")
        await conn.execute("SELECT pg_advisory_unlock(%s)", (migrate.LOCK_KEY,))
    nodes = await starting
    applied = Counter(line["name"] for node in nodes.nodes for line in told(node, "migrate.applied"))
    sql = Path(__file__).parents[2] / "sql"
    names = [path.stem for path in (sql / "migrations").glob("*.sql")] + [
        f"functions/{path.stem}" for path in (sql / "functions").glob("*.sql")
    ]
    assert applied == dict.fromkeys(names, 1)
    await together(nodes)
    async with (
        peer_at(nodes[0], "alice") as alice,
        peer_at(nodes[1], "bob") as bob,
        peer_at(nodes[2], "bob", "d2") as tablet,
    ):
        await alice.say("bob")
        assert [(await peer.push("entry"))["seq"] for peer in (bob, tablet)] == [1, 1]


async def test_retention_works_on_one_node_at_a_time_and_all_learn_of_it(
    fresh_db: str, own_redis: OwnRedis, make_process: MakeProcess
) -> None:
    partition_s, olds = 2, 12  # two passes a second
    nodes = await nodes_of(3, make_process, fresh_db, own_redis.url, partition_s=partition_s, partitions_ahead=20)
    await together(nodes)
    async with (
        peer_at(nodes[0], "alice") as alice,
        peer_at(nodes[1], "bob") as bob,
        peer_at(nodes[2], "alice", "d2") as tablet,
    ):
        for _ in range(3):
            ok = await alice.say("bob", "old")
            await bob.push("entry")
        async with await psycopg.AsyncConnection.connect(fresh_db, autocommit=True) as conn:
            await conn.execute("SELECT pg_advisory_lock(hashtext('chatd.retention'))")
            old = datetime.now(UTC) - timedelta(days=40)
            for n in range(olds):
                cur = await conn.execute("SELECT make_partition(%s)", (old - timedelta(seconds=n * partition_s),))
                assert await cur.fetchone() != (None,)
            await conn.execute("UPDATE entries SET ts = ts - interval '40 days'")
            await asyncio.sleep(1.2)  # two passes of each
            assert [told(node, "partition.dropped") for node in nodes.nodes] == [[], [], []], "somebody else is at it"
        assert (await alice.say("bob", "new"))["seq"] == 4
        await until(
            lambda: sum(len(told(node, "partition.dropped")) for node in nodes.nodes) >= olds, "they are dropped"
        )

        async def floors() -> list[int]:
            return [(await peer.request("history", c=ok["c"]))["floor"] for peer in (alice, bob, tablet)]

        async def all_know() -> bool:
            return await floors() == [4, 4, 4]

        await until(all_know, "every node's memory has the new floor")
        for peer in (alice, bob, tablet):
            page = await peer.request("history", c=ok["c"])
            assert ([e["seq"] for e in page["entries"]], page["more"]) == ([4], False)
    dropped = Counter(line["name"] for node in nodes.nodes for line in told(node, "partition.dropped"))
    assert set(dropped.values()) == {1}
    assert [told(node, "retention.late") for node in nodes.nodes] == [[], [], []]


# ---- alone ---------------------------------------------------------------------------------------


async def test_one_node_without_redis_never_loads_it_and_knows_no_feed(
    fresh_db: str, make_process: MakeProcess, tmp_path: Path
) -> None:
    listed = tmp_path / "modules.json"
    before = (
        f"import atexit, json, sys; atexit.register(lambda: open({str(listed)!r},"
        " 'w').write(json.dumps(sorted(sys.modules))))"
    )
    node = await make_process(before, database_url=fresh_db, admin_port=free_port(), cursor_flush_ms=10)
    async with peer_at(node, "alice") as alice, peer_at(node, "bob") as bob:
        c = await befriend(alice, "alice", bob, "bob")
        await alice.request("watch", users=["bob"])
        await bob.request("read", c=c, seq=1)
        assert (await alice.push("receipt"))["read"] == 1
        await alice.request("typing", c=c)
        assert (await bob.push("typing"))["from"] == "alice"
        async with await psycopg.AsyncConnection.connect(fresh_db) as conn:
            rows = await (
                await conn.execute("SELECT application_name FROM pg_stat_activity WHERE datname = current_database()")
            ).fetchall()
            assert {"chatd reads"} <= {name for (name,) in rows}
            assert "chatd feed" not in {name for (name,) in rows}
        said = await metrics(node)
        assert said["chatd_sends_ok_total"] == 2
        assert (said["chatd_feed_reads_total"], said["chatd_publishes_total"], said["chatd_quota_calls_total"]) == (
            0,
            0,
            0,
        )
        assert not said.keys() & {"chatd_bus_up", "chatd_presence_stale", "chatd_quota_open", "chatd_nodes_known"}
    node.terminate()
    assert await node.ended() == 0
    async with await psycopg.AsyncConnection.connect(fresh_db) as conn:
        assert await (await conn.execute("SELECT count(*) FROM cursors")).fetchone() != (0,)
        assert await (await conn.execute("SELECT count(*) FROM feed")).fetchone() == (0,)
    loaded = json.loads(listed.read_text())
    assert "chatd.server" in loaded
    absent = (
        "redis",
        "hiredis",
        "chatd.cluster.node",
        "chatd.cluster.pubsub",
        "chatd.cluster.redis.client",
        "chatd.cluster.change_feed",
        "chatd.cluster.presence_sync",
        "chatd.cluster.shared_limits",
        "chatd.cluster.relay",
    )
    assert [name for name in loaded if name.startswith(tuple(f"{name}." for name in absent)) or name in absent] == []
