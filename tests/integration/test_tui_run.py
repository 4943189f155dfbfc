"""`chatd chat` as somebody starts it: in tmux against a real server, by a pipe, and without textual."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from chatd.tui.run import is_terminal
from tests.fix_server import Server
from tests.until import until

TMUX = shutil.which("tmux")
NO_TMUX = "tmux is not installed, so no terminal is tested (`make setup` as root installs it)"
WITHOUT_TEXTUAL = """
import sys
sys.modules["textual"] = None
from chatd.tui import run
run.is_terminal = lambda: True
from chatd.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Tmux:
    """A tmux server of its own; its sessions are terminals by name."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "tmux"
        self._env = {key: value for key, value in os.environ.items() if not key.startswith(("TMUX", "CHATD_"))}
        self._env |= {"TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}

    async def __call__(self, *args: str) -> str:
        command = [TMUX or "tmux", "-S", str(self._socket), "-f", "/dev/null", *args]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, env=self._env)
        out, _ = await process.communicate()
        return out.decode()

    async def start(self, name: str, size: tuple[int, int], *command: str) -> None:
        """Run a command in a terminal, which stays when it has ended and shows its exit status."""
        line = f"{shlex.join(command)}; echo ended with $?; exec cat"
        await self("new-session", "-d", "-s", name, "-x", str(size[0]), "-y", str(size[1]), "sh", "-c", line)

    async def keys(self, name: str, *keys: str) -> None:
        await self("send-keys", "-t", name, *keys)

    async def write(self, name: str, text: str) -> None:
        await self("send-keys", "-t", name, "-l", text)

    async def child(self, name: str) -> int:
        """The pid of the command."""
        shell = (await self("display-message", "-p", "-t", name, "#{pane_pid}")).strip()
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])

    async def shows(self, name: str, *texts: str, but: str | None = None) -> str:
        """Wait until all of these are on the screen, and `but` is not."""
        screen = ""

        async def holds() -> bool:
            nonlocal screen
            screen = await self("capture-pane", "-p", "-J", "-S", "-20", "-t", name)
            return all(text in screen for text in texts) and (but is None or but not in screen)

        await until(holds, lambda: f"{texts} (but {but}) in\n{screen}", pause_s=0.1)
        return screen


@pytest_asyncio.fixture
async def tmux(tmp_path: Path) -> AsyncIterator[Tmux]:
    if TMUX is None:
        pytest.skip(NO_TMUX)
    tmux = Tmux(tmp_path)
    yield tmux
    await tmux("kill-server")


def chat(server: Server, folder: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "chatd", "chat", *args, "--url", server.url, "--data-dir", str(folder)]


async def test_two_people_chat_in_two_terminals(server: Server, tmux: Tmux, tmp_path: Path) -> None:
    await tmux.start("alice", (80, 20), *chat(server, tmp_path, "alice", "bob"))
    await tmux.start("bob", (40, 12), *chat(server, tmp_path, "bob"))
    await tmux.shows("alice", "● online", "as alice", "nothing has been written here yet")
    await tmux.shows("bob", "● online", "as bob")
    await tmux.write("alice", "hello bob")
    await tmux.keys("alice", "Enter")
    await tmux.shows("alice", "✓   hello bob")
    await tmux.shows("bob", "alice", "1 unread")
    await tmux.keys("bob", "Home", "Enter")
    await tmux.shows("bob", "hello bob", but="unread")
    await tmux.write("bob", "hi ålice 日本")
    await tmux.shows("bob", "hi ålice 日本")
    await tmux.keys("bob", "Enter")
    await tmux.shows("alice", "✓✓✓ hello bob", "hi ålice 日本", "bob  ● online")
    await tmux.shows("bob", "✓✓✓ hi ålice 日本")
    await tmux.write("bob", "more")
    await tmux.shows("alice", "typing…")
    await tmux.keys("bob", "C-q")
    await tmux.shows("bob", "Not sent yet:", "«more» (a draft)")
    await tmux.keys("bob", "y")
    await tmux.shows("bob", "chatd: not sent to alice: «more» (a draft)", "ended with 0")
    await tmux.shows("alice", "○ offline, last seen")
    await tmux.keys("alice", "C-q")
    await tmux.shows("alice", "ended with 0")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_a_signal_ends_the_screen_and_gives_the_terminal_back(
    number: signal.Signals, status: int, server: Server, tmux: Tmux, tmp_path: Path
) -> None:
    await tmux.start("alice", (80, 20), *chat(server, tmp_path, "alice", "bob"))
    await tmux.shows("alice", "● online")
    await tmux.write("alice", "half a thou")
    await tmux.shows("alice", "half a thou")
    os.kill(await tmux.child("alice"), number)
    await tmux.shows("alice", "not sent to bob: «half a thou» (a draft)", f"ended with {status}", but="Traceback")
    assert (await tmux("display-message", "-p", "-t", "alice", "#{alternate_on} #{mouse_any_flag}")).split() == [
        "0",
        "0",
    ]


async def run(*command: str, input: str = "") -> tuple[int | None, str, str]:
    pipe = subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = await process.communicate(input.encode())
    return process.returncode, out.decode(), err.decode()


async def test_a_pipe_is_sent_line_by_line(server: Server, tmp_path: Path) -> None:
    status, out, err = await run(*chat(server, tmp_path, "ci", "alice"), input="the build\nis green\n")
    assert (status, err) == (0, "")
    assert [line.split(" ", 1)[1] for line in out.splitlines()] == ["alice < the build", "alice < is green"]
    status, _, err = await run(*chat(server, tmp_path, "ci", "alice"), input="x" * 3_000)
    assert status == 1
    assert "2048 is the most" in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["alice"], "say to whom: chatd chat USER PEER"),
        (["alice", "b" * 65], "is no user id"),
        (["a" * 65, "bob"], "is no user id"),
        (["alice", "bob", "--url", "x"], "is no address of a WebSocket"),
    ],
)
async def test_a_wrong_line_is_one_sentence(args: list[str], says: str, tmp_path: Path) -> None:
    status, _, err = await run(sys.executable, "-m", "chatd", "chat", *args, "--data-dir", str(tmp_path))
    assert status == 2
    assert says in err
    assert len(err.splitlines()) == 1


async def test_without_textual_the_remedy_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TEXTUAL, "chat", "alice", "bob", "--data-dir", str(tmp_path)]
    status, _, err = await run(*command)
    assert status == 1
    assert f"{sys.executable} -m pip install --require-hashes -r requirements/tui.txt" in err
    assert "--lines" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "module", ["chatd.server", "chatd.cli", "chatd.client", "chatd.client.tail", "chatd.tui.lines"]
)
async def test_only_the_screen_imports_textual(module: str) -> None:
    code = f"import {module}, sys; print('textual' in sys.modules)"
    assert await run(sys.executable, "-c", code) == (0, "False\n", "")


def test_a_screen_needs_a_terminal_at_all_three_streams() -> None:
    assert not is_terminal(), "pytest has taken the output"
