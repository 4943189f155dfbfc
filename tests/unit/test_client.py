"""What is said of a failure of Redis, and which of them the operator is to mend.

The rest of the engine needs real servers: tests/cluster.
"""

from __future__ import annotations

import asyncio
import ssl

import pytest
from redis import exceptions
from redis.asyncio.sentinel import MasterNotFoundError

from chatd.cluster.redis.client import RedisClient, RedisUnavailable
from chatd.cluster.redis.connect import REASON_MAX, reason, remedy, translated
from chatd.cluster.redis.url import read
from chatd.errors import SettingError

URL = read("redis://app:s3cret@host")


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


def test_a_reason_is_one_short_line_without_secrets_and_without_the_command() -> None:
    assert reason(URL, exceptions.OutOfMemoryError("command not allowed")) == "OutOfMemoryError: command not allowed"
    assert (
        reason(URL, exceptions.ResponseError("unknown command 'AUTH', with args: 'app' 's3cret'")).count("s3cret") == 0
    )
    in_pipeline = exceptions.ResponseError(
        "Command # 1 (HSET {chatd}:on:1 anna [...]) of pipeline caused error: READONLY You can't write"
    )
    assert reason(URL, in_pipeline) == "ResponseError: READONLY You can't write"
    in_script = exceptions.ResponseError(
        "Error running script (call to f_2248ea): @user_script:1: @user_script: 1: -OOM command not allowed"
    )
    assert reason(URL, in_script) == "ResponseError: OOM command not allowed"
    assert len(reason(URL, exceptions.ConnectionError("x\n" * 1000))) == REASON_MAX
    assert "\n" not in reason(URL, exceptions.ConnectionError("x\ny"))
    sentinels = read("redis+sentinel://a,b/main")
    assert (
        reason(sentinels, MasterNotFoundError("No master found for 'main' : <Redis(...)>"))
        == "no Sentinel that answers knows a master of main"
    )


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (exceptions.AuthenticationError("invalid username-password pair"), "does not take"),
        (
            exceptions.NoPermissionError("this user has no permissions"),
            "ACL SETUSER name ~{chat-1}:* resetchannels &chat-1:* +@all",
        ),
        (
            exceptions.ResponseError("The user executing the script can't publish to the channel mentioned"),
            "ACL SETUSER name",
        ),
        (
            caused(exceptions.RedisClusterException("cannot be connected"), exceptions.AuthenticationError("")),
            "does not take",
        ),
        (exceptions.RedisClusterException("Cluster mode is not enabled on this node"), "is no Cluster"),
        (caused(exceptions.ConnectionError(""), ssl.SSLCertVerificationError()), "ssl_ca_certs"),
        (
            MasterNotFoundError("No master found: <Redis> - AuthenticationError('Authentication required.')"),
            "sentinel_password",
        ),
        (exceptions.ResponseError("unknown command 'HELLO'"), "6.2 or later"),
        (exceptions.ResponseError("DB index is out of range"), "end the URL with /0"),
        (exceptions.ConnectionError("Connection refused"), None),
        (exceptions.TimeoutError(), None),
        (exceptions.BusyLoadingError("Redis is loading"), None),
        (exceptions.OutOfMemoryError("full"), None),
        (exceptions.ReadOnlyError("replica"), None),
        (MasterNotFoundError("No master found for 'main'"), None),
        (None, None),
    ],
)
def test_only_what_waiting_cannot_mend_has_a_remedy(fault: Exception | None, says: str | None) -> None:
    found = remedy(URL, "chat-1", fault)
    assert found is None if says is None else found is not None and says in found


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (exceptions.ConnectionError("Connection refused"), "ConnectionError: Connection refused"),
        (exceptions.RedisClusterException("no node"), "RedisClusterException: no node"),
        (TimeoutError(), "no answer within 2 s"),
        (ConnectionResetError("reset"), "ConnectionResetError: reset"),
        (AttributeError("'NoneType' object has no attribute 'writelines'"), "another call closed the connection"),
        (
            RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed"),
            "another call closed the connection",
        ),
    ],
)
def test_whatever_redis_py_raises_is_away(fault: Exception, says: str) -> None:
    with pytest.raises(RedisUnavailable) as e, translated(URL, 2.0):
        raise fault
    assert str(e.value) == says


@pytest.mark.parametrize(
    "fault",
    [AttributeError("'Redis' object has no attribute 'hest'"), RuntimeError("our own"), ValueError(), KeyError("x")],
)
def test_what_we_got_wrong_stays_what_it_is(fault: Exception) -> None:
    with pytest.raises(type(fault)), translated(URL, 2.0):
        raise fault


async def test_a_cancellation_meant_for_another_call_is_away_and_ours_is_ours() -> None:
    shared = asyncio.get_running_loop().create_future()  # as that of a connection that closes

    async def wait() -> None:
        with translated(URL, 2.0):
            await shared

    one, other = asyncio.create_task(wait()), asyncio.create_task(wait())
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.wait([one, other])
    assert one.cancelled()
    assert str(other.exception()) == "another call was cancelled"


def test_without_a_password_the_remedy_is_to_give_one() -> None:
    found = remedy(read("redis://host"), "chatd", exceptions.AuthenticationError("Authentication required."))
    assert found is not None
    assert "write redis://:password@host" in found


@pytest.mark.parametrize(
    ("hello", "says"),
    [
        ({"version": "6.0.16", "mode": "standalone"}, "is Redis 6.0.16; chatd needs 6.2 or later"),
        ({"version": "7.2.4", "mode": "cluster"}, "redis+cluster://host,host"),
        ({"version": "7.2.4", "mode": "sentinel"}, "redis+sentinel://host,host/service"),
        ({"version": "6.2.0", "mode": "standalone"}, None),
        ({"version": "10.0.1", "mode": "standalone"}, None),
    ],
)
async def test_a_server_that_cannot_serve_is_refused(hello: dict[str, str], says: str | None) -> None:
    engine = RedisClient("redis://:s3cret@host")
    if says is None:
        engine.judge(hello)
    else:
        with pytest.raises(SettingError) as e:
            engine.judge(hello)
        assert str(e.value).startswith("redis_url: redis://***@host ")
        assert says in str(e.value)
    await engine.close()


@pytest.mark.parametrize("option", ["ssl_ca_certs=/none.pem", "ssl_certfile=/none.pem", "ssl_ca_certs=/etc/passwd"])
def test_certificates_that_cannot_be_read_are_a_wrong_setting(option: str) -> None:
    with pytest.raises(SettingError) as e:
        RedisClient(f"rediss://:s3cret@host?{option}")
    assert "correct its ssl_ options" in str(e.value)
    assert "s3cret" not in str(e.value)
