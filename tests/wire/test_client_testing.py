"""`chatd.client.testing`, as the tests of an app use it."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest

from chatd.chat.auth import KeySet, Verifier
from chatd.client import Client
from chatd.client.testing import FakeChatd, make_token
from chatd.errors import TokenExpired

pytest_plugins = ["pytester"]

SECRET = "s" * 32

AN_APPS_TEST = """
from chatd.client import Client

pytest_plugins = ["chatd.client.testing.plugin"]

async def test_it(fake_chatd):
    async with Client(fake_chatd.url, token=fake_chatd.token("me"), device="d") as client:
        fake_chatd.say("bob", "me", "hi")
        async for entry in client.entries():
            await entry.reply("hello")
            break
    assert fake_chatd.texts("bob", "me") == ["hi", "hello"]
"""


def test_the_fixture_runs_in_a_pytest_of_an_app(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(AN_APPS_TEST)
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-o", "asyncio_mode=auto").assert_outcomes(passed=1)


async def test_its_deadline_ends_a_test_that_hangs() -> None:
    with pytest.raises(TimeoutError):
        async with FakeChatd(within_s=0.05) as server, Client(server.url, token="me", device="d") as client:
            await anext(client.entries())


def test_a_token_is_one_that_a_server_takes(tmp_path: Path) -> None:
    key = {
        "kty": "oct",
        "kid": "app",
        "alg": "HS256",
        "k": base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("="),
    }
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [key]}))
    path.chmod(0o600)
    verifier = Verifier(KeySet.load(path), "chat", None, 5)
    now_s = time.time()
    assert verifier.verify(make_token("bob", SECRET, kid="app", aud="chat"), now_s).user == "bob"
    with pytest.raises(TokenExpired):
        verifier.verify(make_token("bob", SECRET.encode(), ttl_s=1.0, aud="chat"), now_s + 60.0)
