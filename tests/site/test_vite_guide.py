"""docs/guides/vite.md: a page of Vite's development server gets a token and chats; what it warns of fails."""

from __future__ import annotations

import asyncio
import json
import os
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from tests.fix_process import MakeProcess, Process
from tests.js.test_gates import ROOT, needs_node
from tests.ports import free_port
from tests.site import pages
from tests.site.blocks import blocks, files

GUIDE: Final = pages.DOCS / "guides" / "vite.md"
START_S_MAX: Final = 60.0

pytestmark = needs_node


@asynccontextmanager
async def vite(folder: Path, server: Process, *changes: tuple[str, str]) -> AsyncIterator[int]:
    """Vite with the guide's configuration, changed by (text, another in its place); its port."""
    files(GUIDE.read_text(), folder)
    config = folder / "vite.config.js"
    text = config.read_text()
    for old, new in (*changes, ("127.0.0.1:8080", f"127.0.0.1:{server.port}")):
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    (folder / "index.html").write_text("<!doctype html><title>application</title>")
    (folder / "node_modules").symlink_to(ROOT / "node_modules")
    port = free_port()
    # Where CI is set, Vite prints colours to a pipe, too, and they stand within the words.
    process = await asyncio.create_subprocess_exec(
        "node", "node_modules/vite/bin/vite.js", "--port", str(port), "--strictPort", "--host", "127.0.0.1",
        cwd=folder, stdout=PIPE, stderr=STDOUT, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_S_MAX):
            said = b""
            while b"Local:" not in said:
                line = await process.stdout.readline()
                assert line, said.decode()
                said += line
        yield port
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def chats(port: int, origin: str, token: str) -> str:
    """The first frame that a browser's page of `origin` gets at this port."""
    async with connect(
        f"ws://127.0.0.1:{port}/ws", origin=Origin(origin), subprotocols=[Subprotocol("chatd.v1")]
    ) as ws:
        await ws.send(json.dumps({"t": "hello", "v": 1, "id": 1, "token": token, "device": "d"}))
        return str(json.loads(await ws.recv())["t"])


def token_of(port: int, headers: dict[str, str]) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=START_S_MAX)
    try:
        connection.request("GET", "/dev/token?user=alice", headers=headers)
        reply = connection.getresponse()
        body = reply.read()
        return reply.status, json.loads(body)["token"] if reply.status == 200 else ""
    finally:
        connection.close()


async def test_a_page_of_vite_gets_a_token_and_chats_through_the_proxy(
    make_process: MakeProcess, tmp_path: Path
) -> None:
    server = await make_process()
    async with vite(tmp_path, server) as port:
        origin = f"http://127.0.0.1:{port}"
        assert (await asyncio.to_thread(token_of, port, {}))[0] == 404, "without the header"
        status, token = await asyncio.to_thread(token_of, port, {"X-Chatd-Dev": "1", "Origin": origin})
        assert status == 200
        assert await chats(port, origin, token) == "welcome"


async def test_a_proxy_written_as_a_string_is_refused(make_process: MakeProcess, tmp_path: Path) -> None:
    server = await make_process()
    async with vite(tmp_path, server, ("{ ...chatd, ws: true }", "'ws://127.0.0.1:8080'")) as port:
        with pytest.raises(InvalidStatus, match="403"):
            await chats(port, f"http://127.0.0.1:{port}", server.token("alice"))


async def test_without_a_proxy_the_origin_must_be_named(make_process: MakeProcess) -> None:
    words = next(block.code for block in blocks(GUIDE.read_text()) if "--origins" in block.code)
    origin = words.split("--origins ")[1].rstrip('"\n')
    server = await make_process(origins=origin)
    assert await chats(server.port, origin, server.token("alice")) == "welcome"
    with pytest.raises(InvalidStatus, match="403"):
        await chats(server.port, origin.replace("localhost", "127.0.0.1"), server.token("alice"))
