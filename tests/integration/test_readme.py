"""The README's client does what the README says."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from tests.fix_server import Server

ROOT = Path(__file__).parents[2]


async def test_the_echo_client_of_the_readme_answers(server: Server, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 20
    script = tmp_path / "echo.py"
    script.write_text(code.replace("ws://127.0.0.1:8080/ws", server.url))
    alice, before = await server.connect("alice", watch=["echo"]), await server.connect("echo")
    await alice.say("echo", "are you there?")
    await before.say("alice", "soon")  # both have sent: alice sees when echo comes
    await before.close()
    while (await alice.push("presence"))["state"] != "offline":
        pass
    echo = await asyncio.create_subprocess_exec(sys.executable, str(script), "echo", server.token("echo"))
    try:
        assert (await alice.push("presence"))["state"] == "online"
        await alice.say("echo", "hello")
        while (entry := await alice.push("entry"))["seq"] < 4:
            pass
        assert entry["body"] == "you said: hello"
        while (receipt := await alice.push("receipt"))["read"] < 1:
            pass
        assert receipt["from"] == "echo"
    finally:
        echo.terminate()
        await echo.wait()
