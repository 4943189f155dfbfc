"""The programs of a page of the docs, cut out of it and run against a chatd that is a process of its own.

Commands run as a reader types them, in a shell; only the address is that of the test's server.

    page = Page(path, folder, server)   its files are in `folder`
    page.prints("send.py")              runs the command of the page with these words: what it printed
    page.running("chat.py")             the same while the test goes on: `line_of` it, `say` to it
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

from tests.fix_process import Process
from tests.site.blocks import Block, blocks, files

END_S_MAX: Final = 120.0  # for what hangs
# `chatd token` takes a second, so one command alone has its token by it, and the others have theirs from the test.
TOKEN: Final = re.compile(r"\$\((?:\.venv/bin/)?chatd token (\w+)\)")
AS_IT_STANDS: Final = "link.py"


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
        if words != AS_IT_STANDS:
            code = TOKEN.sub(lambda found: self.server.token(found[1]), code)
        code = re.sub(r"^(?=(?:python|node) .*\Z)", "exec ", code.replace(".venv/bin/", ""), flags=re.MULTILINE)
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
            async with asyncio.timeout(END_S_MAX):
                out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()

    async def sends(self, body: str) -> None:
        """alice sends to bob."""
        await self.prints("", f'python send.py {self.url} "$(chatd token alice)" bob "{body}"')


async def line_of(process: Running) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(END_S_MAX):
        line = await process.stdout.readline()
    assert line, "the program ended"
    return line.decode().rstrip("\n")


async def say(process: Running, line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n".encode())
    await process.stdin.drain()


async def echoes_over_a_kill(alice: Running, server: Process) -> None:
    """alice writes to `echo`, which answers each message once; the server is killed in between."""
    for number, body in enumerate(("one", "two", "three")):
        if body == "two":
            server.kill()
            await say(alice, f"echo {body}")
            await server.start()
        else:
            await say(alice, f"echo {body}")
        assert await line_of(alice) == f"{2 * number + 1} alice: {body}"
        assert await line_of(alice) == f"{2 * number + 2} echo: you said: {body}"
