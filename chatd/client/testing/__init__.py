"""For the tests of programs that use `chatd.client`: a chatd in memory, tokens, a pytest fixture.

    async with FakeChatd() as server:
        async with Client(server.url, token=server.token("me"), device="d") as client:
            server.say("bob", "me", "hi")
            server.fault = lambda session, frame: "cut" if frame["t"] == "send" else None

`pytest_plugins = ["chatd.client.testing.plugin"]` in a conftest.py makes the fixture `fake_chatd`.
"""

from chatd.client.testing.conversation import Conv, Frame
from chatd.client.testing.requests import Refused
from chatd.client.testing.server import FakeChatd, Fault
from chatd.client.testing.session import Session
from chatd.client.testing.tokens import make_token

__all__ = ["Conv", "FakeChatd", "Fault", "Frame", "Refused", "Session", "make_token"]
