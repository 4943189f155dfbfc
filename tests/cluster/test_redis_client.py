"""The Redis client against a real server of each shape, and against what one server does when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from chatd.cluster.redis import client as client_module
from chatd.cluster.redis import pipeline as pipeline_module
from chatd.cluster.redis.client import GIVEN_UP_MAX, RedisClient, RedisPyClient, RedisUnavailable, Subscription
from chatd.errors import SettingError
from tests.fix_redis import MakeRedis, OwnCluster, OwnRedis, OwnSentinel
from tests.fix_redis_client import SOON_S, Ear, Listening, MakeRedisClient, Message, fail, refused
from tests.proxy import Proxy
from tests.until import until

pytestmark = pytest.mark.cluster


@pytest_asyncio.fixture
async def proxy(own_redis: OwnRedis) -> AsyncIterator[Proxy]:
    one = Proxy(own_redis.port)
    await one.start()
    yield one
    await one.stop()


async def test_every_shape_does_all_that_chatd_does(shape: str, make_redis_client: MakeRedisClient) -> None:
    redis_client = make_redis_client(shape)
    await redis_client.check()
    assert await redis_client.command("HSET", "{chatd}:h", "anna", b"\x00\xff") == 1
    assert await redis_client.run(lambda redis: redis.hmget("{chatd}:h", ["anna", "bert"])) == [b"\x00\xff", None]
    second = redis_client.script("return {KEYS[2], ARGV[1]}")
    assert await second(["{chatd}:a", "{chatd}:b"], [7]) == [b"{chatd}:b", b"7"]
    names = [f"chatd:u:{n}" for n in range(2_500)]
    async with Listening(redis_client) as heard:
        await heard.pong()  # without any channel, where Redis answers in another form
        await heard.to(*names)
        await redis_client.publish([(name, b"\xff\x00\r\n" + name.encode()) for name in names])
        await redis_client.publish([("chatd:u:0", b"%d" % n) for n in range(50)])
        await heard.ear.until(lambda: len(heard.ear.messages) == 2_550)
        assert {m.channel: m.data for m in heard.ear.messages if m.data[0] == 0xFF} == {
            name: b"\xff\x00\r\n" + name.encode() for name in names
        }
        assert [int(m.data) for m in heard.ear.messages if m.data[0] != 0xFF] == list(range(50))
        await heard.subscription.unsubscribe(names[1:])
        await heard.pong()
        await redis_client.publish([(name, b"late") for name in reversed(names)])
        await heard.ear.until(lambda: len(heard.ear.messages) > 2_550)
        await heard.pong()
        assert [m.channel for m in heard.ear.messages[2_550:]] == ["chatd:u:0"]


async def test_all_commands_share_one_connection_from_the_first_check_on(
    own_redis: OwnRedis, redis_client: RedisClient
) -> None:
    """docs/cluster.md counts them: one for commands, one for the subscription."""
    await redis_client.check()
    await redis_client.publish([("chatd:u:1", b"")])
    async with Listening(redis_client):
        listed = own_redis.command("CLIENT", "LIST").decode().splitlines()
        assert redis_client.connections == len([line for line in listed if "flags=U" not in line]) == 2  # by TCP


@pytest.mark.parametrize("shape", ["tls", "tls sentinel", "tls cluster"], indirect=True)
async def test_certificates_are_read_once(
    shape: str, make_redis_client: MakeRedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ssl.SSLContext] = []
    real = ssl.create_default_context

    def make() -> ssl.SSLContext:
        made.append(real())
        return made[-1]

    monkeypatch.setattr(ssl, "create_default_context", make)
    monkeypatch.setattr(client_module, "RENEW_S", 0)
    redis_client = make_redis_client(shape)
    for _ in range(3):
        await asyncio.gather(*(redis_client.command("GET", "{chatd}:a") for _ in range(5)))
        async with Listening(redis_client) as heard:
            await heard.to("chatd:u:1")
        with pytest.raises(RedisUnavailable):
            await redis_client.run(fail)
    assert len(made) == 1


async def test_nothing_asked_is_nothing_done(redis_client: RedisClient) -> None:
    async with Listening(redis_client) as heard:
        await heard.to("chatd:u:1")
        await heard.subscription.subscribe([])
        await heard.subscription.unsubscribe([])  # Redis takes no names for all names
        await redis_client.publish([])
        await redis_client.publish([("chatd:u:1", b"")])
        await heard.ear.until(lambda: heard.ear.messages == [Message("chatd:u:1", b"")])


# ---- the wrong setting ---------------------------------------------------------------------------


async def test_a_wrong_or_missing_password_is_told_and_not_waited_for(
    make_redis: MakeRedis, make_redis_client: MakeRedisClient
) -> None:
    server = make_redis(password="right")
    here = f"127.0.0.1:{server.port}"
    assert "does not take" in await refused(make_redis_client(f"redis://:hidden@{here}"))
    assert "does not take" in await refused(make_redis_client(f"redis://hidden@{here}"))
    assert "asks for one" in await refused(make_redis_client(f"redis://{here}"))
    # This one asks for none
    assert "does not take" in await refused(make_redis_client(f"redis://:hidden@127.0.0.1:{make_redis().port}"))


@pytest.mark.parametrize(
    "rules", [["~*", "&other:*", "+@all"], ["~other:*", "&*", "+@all"], ["~*", "&*", "+@all", "-@scripting"], ["+ping"]]
)
async def test_a_user_who_may_too_little_is_told_what_is_needed(
    rules: list[str], own_redis: OwnRedis, make_redis_client: MakeRedisClient
) -> None:
    own_redis.command("ACL", "SETUSER", "app", "on", ">hidden", "resetchannels", *rules)
    assert "~{chatd}:* resetchannels &chatd:*" in await refused(
        make_redis_client(f"redis://app:hidden@127.0.0.1:{own_redis.port}")
    )


async def test_another_shape_than_the_server_has_is_told(
    own_redis: OwnRedis, own_sentinel: OwnSentinel, own_cluster: OwnCluster, make_redis_client: MakeRedisClient
) -> None:  # fmt: skip
    assert "redis+cluster://" in await refused(make_redis_client(own_cluster.servers[0].url))
    assert "redis+sentinel://" in await refused(make_redis_client(own_sentinel.sentinels[0].url))
    assert "is no Cluster" in await refused(make_redis_client(f"redis+cluster://127.0.0.1:{own_redis.port}"))
    assert "has no database 99" in await refused(make_redis_client(f"{own_redis.url}/99"))


async def test_a_certificate_of_nobody_is_not_trusted(
    make_redis: MakeRedis, make_redis_client: MakeRedisClient
) -> None:
    server = make_redis(tls=True)
    assert "ssl_ca_certs" in await refused(make_redis_client(f"rediss://127.0.0.1:{server.tls_port}"))
    # The certificate names the address alone
    assert "ssl_ca_certs" in await refused(make_redis_client(server.tls_url.replace("127.0.0.1", "localhost")))
    await make_redis_client(server.tls_url.replace("127.0.0.1", "localhost") + "&ssl_check_hostname=false").check()
    await make_redis_client(f"rediss://127.0.0.1:{server.tls_port}?ssl_cert_reqs=none").check()
    with pytest.raises(RedisUnavailable):  # no TLS there: it may be a proxy that is not up yet
        await make_redis_client(f"rediss://127.0.0.1:{server.port}").check()


# ---- away ----------------------------------------------------------------------------------------


async def test_where_nothing_listens_all_is_away(own_redis: OwnRedis, make_redis_client: MakeRedisClient) -> None:
    own_redis.kill()
    here = f"127.0.0.1:{own_redis.port}"
    for url in (
        f"redis://{here}",
        f"unix://{own_redis.socket}",
        f"redis+sentinel://{here}/main",
        f"redis+cluster://{here}",
    ):
        redis_client = make_redis_client(url)
        for asked in (
            redis_client.check(),
            redis_client.command("PING"),
            redis_client.publish([("a", b"")]),
            redis_client.script("return 1")([], []),
            redis_client.subscription().connect(),
        ):
            with pytest.raises(RedisUnavailable) as e:
                await asked
            assert str(e.value)


async def test_a_kill_is_away_and_a_restart_is_back_at_the_first_call(
    own_redis: OwnRedis, redis_client: RedisClient, make_redis_client: MakeRedisClient
) -> None:
    script = redis_client.script("return redis.call('INCR', KEYS[1])")
    assert await script(["{chatd}:n"], []) == 1
    own_redis.kill()
    with pytest.raises(RedisUnavailable):
        await script(["{chatd}:n"], [])
    own_redis.start()
    assert await script(["{chatd}:n"], []) == 1  # empty: neither the key nor the script is there
    await redis_client.publish([("chatd:u:1", b"x")])
    own_redis.start()
    # The loop has turned, and nobody has used the connection that is gone
    await make_redis_client(own_redis.url).command("PING")
    await redis_client.publish([("chatd:u:1", b"x")])


async def test_a_subscription_that_broke_says_so_and_stays_broken(
    own_redis: OwnRedis, redis_client: RedisClient
) -> None:
    for broken in (own_redis.start, lambda: own_redis.command("CLIENT", "KILL", "TYPE", "pubsub")):
        async with Listening(redis_client) as heard:
            await heard.to("chatd:u:1")
            broken()
            await heard.ear.until_away()
            for asked in (
                heard.subscription.subscribe(["chatd:u:2"]),
                heard.subscription.unsubscribe(["chatd:u:1"]),
                heard.subscription.ping(),
            ):
                with pytest.raises(RedisUnavailable):
                    await asked
            with pytest.raises(RedisUnavailable):
                await heard.subscription.listen(heard.ear)
            assert own_redis.command("PUBSUB", "CHANNELS") == []  # nothing subscribed behind our back
            await redis_client.command("PING")


async def test_a_subscriber_that_reads_too_slowly_is_cut_off_and_told(
    own_redis: OwnRedis, redis_client: RedisClient
) -> None:
    own_redis.config("client-output-buffer-limit", "pubsub 200kb 0 0")
    subscription = redis_client.subscription()
    await subscription.connect()
    await subscription.subscribe(["chatd:u:1"])
    await redis_client.publish([("chatd:u:1", bytes(50_000))] * 200)
    ear = Ear(subscription)
    await ear.until_away()
    assert len(ear.messages) < 200
    await subscription.close()


async def test_a_frozen_redis_is_away_within_the_deadline(
    own_redis: OwnRedis, make_redis_client: MakeRedisClient
) -> None:
    redis_client = make_redis_client(own_redis.url, connect_s=0.2)
    await redis_client.command("PING")
    own_redis.freeze()
    for asked in (
        redis_client.command("PING"),
        redis_client.publish([("a", b"")]),
        redis_client.check(),
        redis_client.subscription().connect(),
    ):
        with pytest.raises(RedisUnavailable) as e:
            async with asyncio.timeout(SOON_S):  # and not after TCP's minutes
                await asked
        assert "0.2 s" in str(e.value)
    own_redis.thaw()
    assert await redis_client.command("PING")


async def test_a_paused_redis_is_away_and_then_back(own_redis: OwnRedis, make_redis_client: MakeRedisClient) -> None:
    redis_client = make_redis_client(own_redis.url, connect_s=0.2)
    own_redis.command("CLIENT", "PAUSE", 10_000, "ALL")
    with pytest.raises(RedisUnavailable):
        await redis_client.command("PING")
    own_redis.start()
    assert await redis_client.command("PING")


async def test_a_ping_is_answered_only_by_a_redis_that_runs(own_redis: OwnRedis, redis_client: RedisClient) -> None:
    async with Listening(redis_client) as heard:
        await heard.to("chatd:u:1")
        own_redis.freeze()
        await heard.subscription.ping()
        other = await asyncio.open_unix_connection(own_redis.socket)  # the kernel takes it; the loop has turned
        assert heard.ear.pongs == 0
        own_redis.thaw()
        await heard.ear.until(lambda: heard.ear.pongs == 1)
        other[1].close()


async def test_a_full_redis_refuses_writes_and_still_publishes(own_redis: OwnRedis, redis_client: RedisClient) -> None:
    async with Listening(redis_client) as heard:
        await heard.to("chatd:u:1")
        own_redis.config("maxmemory-policy", "noeviction")
        own_redis.config("maxmemory", 1)
        for asked in (
            redis_client.command("HSET", "{chatd}:h", "a", 1),
            redis_client.script("return redis.call('HSET', KEYS[1], 'a', 1)")(["{chatd}:h"], []),
        ):
            with pytest.raises(RedisUnavailable, match="memory"):
                await asked
        await redis_client.publish([("chatd:u:1", b"x")])
        await heard.ear.until(lambda: len(heard.ear.messages) == 1)
        own_redis.config("maxmemory", 0)
        assert await redis_client.command("HSET", "{chatd}:h", "a", 1) == 1


async def test_a_replica_refuses_writes(make_redis: MakeRedis, make_redis_client: MakeRedisClient) -> None:
    master = make_redis()
    replica = make_redis(replicaof=("127.0.0.1", master.port), replica_serve_stale_data="no")
    redis_client = make_redis_client(replica.url)
    await until(lambda: replica.info("replication")["master_link_status"] == "up")
    for asked in (redis_client.command("SET", "{chatd}:a", 1), redis_client.check()):
        with pytest.raises(RedisUnavailable, match=r"(?i)read.?only"):
            await asked
    master.kill()
    await until(lambda: replica.info("replication")["master_link_status"] != "up")
    with pytest.raises(RedisUnavailable, match="MASTER"):
        await redis_client.command("GET", "{chatd}:a")


# ---- each its own answer -------------------------------------------------------------------------


async def test_after_commands_given_up_everybody_gets_their_own_answer(
    own_redis: OwnRedis, redis_client: RedisClient
) -> None:
    await asyncio.gather(*(redis_client.command("ECHO", n) for n in range(8)))  # so many connections are open
    own_redis.freeze()
    script = redis_client.script("return ARGV[1]")
    for n in range(6):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await (redis_client.command("ECHO", f"lost {n}") if n % 2 else script([], [f"lost {n}"]))
    own_redis.thaw()
    answers = await asyncio.gather(
        *(redis_client.command("ECHO", n) for n in range(20)), *(script([], [n]) for n in range(20, 30))
    )
    assert answers == [b"%d" % n for n in range(30)]


@pytest.mark.parametrize("shape", ["plain", "tls", "cluster"], indirect=True)
async def test_a_cancellation_at_any_step_leaves_no_answer_behind(
    shape: str, make_redis_client: MakeRedisClient
) -> None:
    redis_client = make_redis_client(shape)
    script = redis_client.script("return ARGV[1]")

    async def read_two(redis: RedisPyClient) -> list[Any]:
        pipeline: Any = redis.pipeline(transaction=False)
        found: list[Any] = await pipeline.get("{chatd}:a").get("{chatd}:b").execute()
        return found

    for step in range(40):
        task = asyncio.create_task(script(["{chatd}:a"], [f"lost {step}"]))
        for _ in range(step):
            await asyncio.sleep(0)
        was_under_way = task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled() is was_under_way, "or who cancels it waits for ever"
        assert await script(["{chatd}:a"], [f"own {step}"]) == b"own %d" % step
        assert await redis_client.run(read_two) == [None, None]


async def test_commands_past_the_bound_are_refused_at_once_and_harm_nobody(
    own_redis: OwnRedis, redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "CALLS_MAX", 32)
    for connected in (False, True):
        own_redis.freeze()
        tasks = [asyncio.create_task(redis_client.command("ECHO", n)) for n in range(42)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) <= 10
        assert all(isinstance(task.exception(), RedisUnavailable) for task in done)
        own_redis.thaw()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(answer, RedisUnavailable) for answer in answers) == 10, connected
        answered = [answer for answer in answers if not isinstance(answer, RedisUnavailable)]
        assert answered == [b"%d" % n for n in range(32)]


async def test_after_a_failure_there_is_a_new_client_and_calls_on_the_old_one_come_to_their_end(
    own_redis: OwnRedis, redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(client_module, "RENEW_S", 0)
    waits = asyncio.create_task(redis_client.run(lambda redis: redis.blpop("{chatd}:queue", 1)))
    async with Listening(redis_client) as heard:
        await heard.to("chatd:u:1")
        old = redis_client.client
        with pytest.raises(RedisUnavailable, match="went away"):
            await redis_client.run(fail)
        await redis_client.command("RPUSH", "{chatd}:queue", "x")
        assert redis_client.client is not old
        assert await waits == (b"{chatd}:queue", b"x")
        await redis_client.publish([("chatd:u:1", b"x")])
        await heard.ear.until(lambda: len(heard.ear.messages) == 1)
        async with asyncio.timeout(SOON_S):
            # The new client's, the subscription's, and the one that asks
            await until(lambda: int(own_redis.info("clients")["connected_clients"]) <= 3)


async def test_what_the_command_alone_got_wrong_makes_no_new_client(
    redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RENEW_S", 0)
    old = redis_client.client
    for words in (("HGETALL",), ("NONSENSE",), ("EVAL", "return redis.call('NONSENSE')", 0)):
        with pytest.raises(RedisUnavailable, match="ResponseError"):
            await redis_client.command(*words)
    with pytest.raises(ZeroDivisionError):  # not Redis's fault at all
        await redis_client.run(lambda redis: 1 // 0)  # type: ignore[arg-type, return-value]
    await redis_client.command("PING")
    assert redis_client.client is old


async def test_calls_that_are_given_up_in_a_row_make_a_new_client(
    own_redis: OwnRedis, redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RENEW_S", 0)
    old = redis_client.client

    async def give_up() -> None:
        own_redis.freeze()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await redis_client.run(lambda redis: redis.ping())
        own_redis.thaw()

    for _ in range(GIVEN_UP_MAX + 2):
        await give_up()
        await redis_client.run(lambda redis: redis.ping())  # it lives
    assert redis_client.client is old
    for _ in range(GIVEN_UP_MAX):
        await give_up()
    await redis_client.run(lambda redis: redis.ping())
    assert redis_client.client is not old


async def test_close_leaves_no_connection(own_redis: OwnRedis, make_redis_client: MakeRedisClient) -> None:
    redis_client = make_redis_client(own_redis.url)
    await asyncio.gather(*(redis_client.command("PING") for _ in range(5)))
    async with Listening(redis_client) as heard:
        await heard.to("chatd:u:1")
    await redis_client.close()
    with pytest.raises(RedisUnavailable, match="closed"):
        await redis_client.command("PING")
    await until(lambda: int(own_redis.info("clients")["connected_clients"]) <= 1)  # the one that asks


async def test_closing_wakes_whoever_waits_for_an_event(shape: str, make_redis_client: MakeRedisClient) -> None:
    redis_client = make_redis_client(shape)
    async with Listening(redis_client) as heard:
        await heard.to("chatd:u:1")
        await heard.subscription.close()
        await heard.ear.until_away()
        await heard.subscription.close()


# ---- through a proxy -----------------------------------------------------------------------------


async def test_a_call_cut_in_the_middle_is_away_and_only_its_first_messages_are_published(
    redis_client: RedisClient, proxy: Proxy, make_redis_client: MakeRedisClient
) -> None:
    through = make_redis_client(f"redis://127.0.0.1:{proxy.port}")
    await through.publish([("chatd:u:1", b"before")])
    async with Listening(redis_client) as heard:
        await heard.to("chatd:u:1")
        proxy.cut(requests=300)
        with pytest.raises(RedisUnavailable):
            await through.publish([("chatd:u:1", b"%d" % n) for n in range(50)])
        assert proxy.lost.is_set()
        await through.publish([("chatd:u:1", b"between")])
        proxy.cut(answers=0)
        with pytest.raises(RedisUnavailable):
            await through.publish([("chatd:u:1", b"done, and nobody knows")])
        await through.publish([("chatd:u:1", b"after")])
        await heard.ear.until(lambda: heard.ear.messages[-1:] == [Message("chatd:u:1", b"after")])
        said = [m.data for m in heard.ear.messages]
        first = said[:-3]
        assert 0 < len(first) < 50
        assert first == [b"%d" % n for n in range(len(first))]
        assert said[-3:] == [b"between", b"done, and nobody knows", b"after"]


async def test_a_subscription_cut_in_the_middle_of_a_message_is_away(
    own_redis: OwnRedis, proxy: Proxy, redis_client: RedisClient, make_redis_client: MakeRedisClient
) -> None:
    async with Listening(make_redis_client(f"redis://127.0.0.1:{proxy.port}")) as heard:
        await heard.to("chatd:u:1")
        proxy.cut(answers=20)
        await redis_client.publish([("chatd:u:1", b"x" * 100)])
        await heard.ear.until_away()
        assert heard.ear.messages == []


async def test_a_network_that_swallows_shows_no_error_and_no_pong(
    proxy: Proxy, make_redis_client: MakeRedisClient
) -> None:
    redis_client = make_redis_client(f"redis://127.0.0.1:{proxy.port}", connect_s=0.2)
    async with Listening(redis_client) as heard:
        await heard.to("chatd:u:1")
        proxy.swallow()
        await heard.subscription.ping()
        with pytest.raises(RedisUnavailable, match=r"0\.2 s"):
            await redis_client.command("PING")
        assert (heard.ear.pongs, heard.ear.away) == (0, None)
        proxy.heal()
        await heard.ear.until_away()
        assert await redis_client.command("PING")  # on a connection of its own


async def test_a_redis_that_speaks_no_redis_is_away(make_redis_client: MakeRedisClient) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    redis_client = make_redis_client(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    for asked in (redis_client.check(), redis_client.subscription().connect()):
        with pytest.raises(RedisUnavailable):
            await asked
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    "fault",
    [
        ValueError("x"),
        KeyError("x"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "x"),
        IndexError(),
        TypeError(),
        ArithmeticError(),
    ],
)
async def test_what_redis_py_cannot_read_is_away(
    redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    async def answer(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(redis_client.client, "execute_command", answer)
    monkeypatch.setattr(redis_client.pipeline, "call", answer)
    ping = redis_client.readable(lambda redis: redis.execute_command("PING"))
    for asked in (ping, redis_client.check()):
        with pytest.raises(RedisUnavailable, match="cannot be read"):
            await asked


GARBAGE = [
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b":x\r\n",
    b"$x\r\n",
    b"*-7\r\n",
    b"*1\r\n$-9\r\n",
    b"\xff\xfe\r\n",
    b"*9999999\r\n",
    b"+\xff\r\n",
]


@pytest.mark.parametrize("answer", GARBAGE)
async def test_a_server_that_is_no_redis_is_away(answer: bytes, make_redis_client: MakeRedisClient) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(1_000):
                writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        redis_client = make_redis_client(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", connect_s=0.2)
        with contextlib.suppress(RedisUnavailable):  # some of these are an answer
            await redis_client.command("PING")
        for asked in (
            redis_client.check(),
            Listening(redis_client).subscription.connect(),
            redis_client.script("return 1")([], []),
        ):
            with contextlib.suppress(RedisUnavailable, SettingError):
                await asked
        with contextlib.suppress(RedisUnavailable, TimeoutError):
            await listen(redis_client.subscription())


async def listen(subscription: Subscription) -> None:
    ear = None
    try:
        await subscription.connect()
        await subscription.subscribe(["a"])
        async with asyncio.timeout(0.3):
            ear = Ear(subscription)
            await ear.until_away()
    finally:
        await subscription.close()
        if ear is not None:
            await ear.stop()
