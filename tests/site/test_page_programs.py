"""The programs on the docs' pages do what the pages say: they are cut out of them and run against a
chatd that is a process of its own, and is killed.

Commands run as a reader types them, in a shell; only the address is that of the test's server.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE
from asyncio.subprocess import Process as Running
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.fix_process import MakeProcess, Process
from tests.proxy import Proxy
from tests.site import pages
from tests.site.blocks import Block, blocks, files

OWN_CLIENT: Final = pages.DOCS / "guides" / "own-client.md"
QUICK_START: Final = pages.DOCS / "quickstart.md"
CUTS: Final = 6
KILLS: Final = 3
LINES: Final = 10


class Page:
    """Its programs in a folder, its commands against a server; `seeded`: a text to be replaced in it, and by what."""

    def __init__(
        self, path: Path, folder: Path, server: Process, seeded: tuple[tuple[str, str], ...] = (), port: int = 0
    ) -> None:
        text = path.read_text()
        for old, new in seeded:
            assert old in text
            text = text.replace(old, new)
        folder.mkdir(exist_ok=True)
        self.programs = [path.stem for path in files(text, folder)]
        self.folder, self.server = folder, server
        self.url = f"ws://127.0.0.1:{port or server.port}/ws"
        self._blocks = blocks(text)
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CHATD_DATA_DIR": str(server.folder),
        }

    def command(self, words: str) -> tuple[Block, str]:
        """The block of shell with these words, and what the page shows behind it as printed."""
        at = next(i for i, block in enumerate(self._blocks) if block.language == "sh" and words in block.code)
        following = self._blocks[at + 1] if at + 1 < len(self._blocks) else None
        return self._blocks[at], following.code if following and following.language == "text" else ""

    @asynccontextmanager
    async def running(self, words: str, code: str = "") -> AsyncIterator[Running]:
        """A command of the page, or another one. `exec`: a kill ends the program, not its shell alone."""
        code = (code or self.command(words)[0].code).replace("ws://127.0.0.1:8080/ws", self.url)
        code = re.sub(r"^(?=python .*\Z)", "exec ", code.replace(".venv/bin/", ""), flags=re.MULTILINE)
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", code, cwd=self.folder, env=self._environment, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def prints(self, words: str, code: str = "") -> str:
        """Run a command to its end: what it printed."""
        async with self.running(words, code) as process:
            out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()

    async def sends(self, body: str) -> None:
        """alice sends to bob."""
        await self.prints("", f'python send.py {self.url} "$(chatd token alice)" bob "{body}"')


async def _line(process: Running) -> str:
    assert process.stdout is not None
    line = await process.stdout.readline()
    assert line, "the program ended"
    return line.decode().rstrip("\n")


async def _say(process: Running, line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n".encode())
    await process.stdin.drain()


async def test_the_own_client_prints_what_the_page_shows_and_resyncs(make_process: MakeProcess, tmp_path: Path) -> None:
    page = Page(OWN_CLIENT, tmp_path, await make_process())
    assert page.programs == ["link", "send", "follow", "chat"]
    for words in ("link.py", "send.py"):
        assert await page.prints(words) == page.command(words)[1] != "", words
    async with page.running("follow.py") as bob:
        assert f"{await _line(bob)}\n" == page.command("follow.py")[1]
        await page.sends("live")
        assert await _line(bob) == "2 alice: live"
        page.server.kill()
        await page.server.start()
        await page.sends("after the kill")
        assert await _line(bob) == "3 alice: after the kill"
    await page.sends("while nobody follows")
    async with page.running("follow.py") as bob:
        assert await _line(bob) == "4 alice: while nobody follows"


async def _over_cuts(page: Page, proxy: Proxy) -> list[str]:
    """alice writes while her line is cut before a message, and before its `ok`; what bob sees."""
    others = f'exec python chat.py {page.server.url} "$(chatd token bob)" bob.json'
    async with page.running("chat.py") as alice, page.running("", others) as bob:
        for number in range(CUTS):
            proxy.cut(requests=0) if number % 2 else proxy.cut(answers=0)
            await _say(alice, f"bob cut {number}")
            await proxy.lost.wait()
            await _say(alice, f"bob line {number}")
            while not (await _line(alice)).endswith(f"alice: line {number}"):
                pass
        await _say(alice, "bob end")
        seen = [await _line(bob)]
        while not seen[-1].endswith("alice: end"):
            seen.append(await _line(bob))
    return seen


BODIES: Final = [*(f"{what} {number}" for number in range(CUTS) for what in ("cut", "line")), "end"]


@pytest.mark.parametrize(
    "seeded",
    [
        pytest.param((), id="as-it-stands"),
        pytest.param(
            (("message = dict(self.outbox[0])", 'message = {**self.outbox[0], "cid": str(uuid.uuid4())}'),),
            id="a-new-cid-for-each-try",
        ),
        pytest.param(
            (
                ('self.outbox[0]["retry"] = True', "self.outbox.popleft()"),
                ("        self.outbox.popleft()\n\n    async def live", "\n    async def live"),
            ),
            id="out-of-the-outbox-before-the-ok",
        ),
    ],
)
async def test_the_own_client_loses_and_doubles_nothing_over_cuts(
    make_process: MakeProcess, tmp_path: Path, seeded: tuple[tuple[str, str], ...]
) -> None:
    server = await make_process(rate_messages=1_000)
    async with Proxy(server.port) as proxy:
        seen = await _over_cuts(Page(OWN_CLIENT, tmp_path, server, seeded, proxy.port), proxy)
    expected = [f"{seq} alice: {body}" for seq, body in enumerate(BODIES, 1)]
    assert (seen == expected) == (not seeded)


async def test_the_own_client_loses_and_doubles_nothing_when_the_server_is_killed(
    make_process: MakeProcess, tmp_path: Path
) -> None:
    page = Page(OWN_CLIENT, tmp_path, await make_process(rate_messages=1_000))
    others = f'exec python chat.py {page.url} "$(chatd token bob)" bob.json'
    async with page.running("chat.py") as alice, page.running("", others) as bob:
        seen = []
        for number in range(KILLS):
            for line in range(LINES):
                await _say(alice, f"bob {number}.{line}")
            seen.append(await _line(bob))  # now some are under way
            page.server.kill()
            await _say(alice, f"bob {number} in the dark")
            await page.server.start()
        while len(seen) < KILLS * (LINES + 1):
            seen.append(await _line(bob))
    bodies = [body for n in range(KILLS) for body in (*(f"{n}.{line}" for line in range(LINES)), f"{n} in the dark")]
    assert seen == [f"{seq} alice: {body}" for seq, body in enumerate(bodies, 1)]


async def test_the_runner_sees_a_program_that_prints_something_else_or_fails(
    make_process: MakeProcess, tmp_path: Path
) -> None:
    server = await make_process()
    page = Page(OWN_CLIENT, tmp_path / "a", server, (('print("I am"', 'print("You are"'),))
    assert await page.prints("link.py") != page.command("link.py")[1]
    page = Page(OWN_CLIENT, tmp_path / "b", server, (('"hello", v=1', '"hello", v=2'),))
    with pytest.raises(AssertionError, match="bad_version"):
        await page.prints("link.py")


async def test_the_echo_of_the_quick_start_answers_once_over_a_kill(make_process: MakeProcess, tmp_path: Path) -> None:
    server = await make_process()
    page, own = Page(QUICK_START, tmp_path, server), Page(OWN_CLIENT, tmp_path / "own", server)
    async with page.running("echo.py") as echo, own.running("chat.py") as alice:
        assert await _line(echo) == "connected as echo"
        for number, body in enumerate(("one", "two", "three")):
            if body == "two":
                server.kill()
                await _say(alice, f"echo {body}")
                await server.start()
            else:
                await _say(alice, f"echo {body}")
            assert await _line(alice) == f"{2 * number + 1} alice: {body}"
            assert await _line(alice) == f"{2 * number + 2} echo: you said: {body}"
