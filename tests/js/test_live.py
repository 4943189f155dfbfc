"""clients/js/test/live.test.ts against a real chatd."""

from __future__ import annotations

import asyncio
import json
import os
import re

import pytest

from tests.fix_server import MakeServer
from tests.js.test_gates import ROOT, TIMEOUT_S, needs_node

pytestmark = pytest.mark.slow


@needs_node
async def test_the_client_chats_with_a_real_server(make_server: MakeServer) -> None:
    server = await make_server(rate_messages=10_000)
    tokens = {user: server.token(user) for user in ("alice", "bob")}
    env = {
        **os.environ,
        "NODE_OPTIONS": "",
        "NO_COLOR": "1",
        "CHATD_URL": server.url,
        "CHATD_TOKENS": json.dumps(tokens),
    }
    command = ["npx", "--no-install", "vitest", "run", "test/live.test.ts"]
    vitest = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT / "clients" / "js",
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            told, _ = await vitest.communicate()
    finally:
        if vitest.returncode is None:
            vitest.kill()
            await vitest.wait()
    assert vitest.returncode == 0, told.decode()
    assert re.search(r"Tests +2 passed", told.decode()), told.decode()
