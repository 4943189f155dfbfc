"""The walk of one `send` through the code, from socket to socket: which files a reader opens, in
order.

The spine hands the message on, file by file; a leaf is called by it, gives a result, and hands
nothing on. Both are typed here, so a module that joins the path fails this test until it is placed.
The spine cannot grow past `SPINE_FILES_MAX` files, nor past `SPINE_LINES_MAX` lines of whole files.
`-rP` prints the files, their lines, and the lines of the functions that ran.
"""

from __future__ import annotations

import ast
import asyncio
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

import pytest

import chatd
import chatd.postgres.watch
import chatd.server
from tests.fix_costs import WAIT_S, Wire
from tests.fix_server import MakeServer

HOME: Final = Path(chatd.__file__).parent
SPINE_FILES_MAX: Final = 8
SPINE_FILE_LINES_MAX: Final = 400
SPINE_LINES_MAX: Final = 2_000  # of the whole files: what a reader has open
FUNCTION_LINES_MAX: Final = 2_000  # of all functions that ran, leaves included

SPINE: Final = (
    "net/connection.py",
    "wire/framing.py",
    "core/session.py",
    "protocol.py",
    "chat/handlers.py",
    "chat/send.py",
    "postgres/lane.py",
    "chat/delivery.py",
)
LEAVES: Final = {
    "ids.py": "checks a user id",
    "request_decoders.py": "makes the request of its JSON object",
    "request_fields.py": "checks the fields of a request",
    "metrics.py": "counts",
    "chat/entry_payloads.py": "makes the payload of the entry",
    "core/batch.py": "makes the item, gathers the batch",
    "core/conversation.py": "names, and whether both have sent",
    "core/conversations.py": "finds the conversation",
    "core/rate_limit.py": "frames of the connection, entries of the user",
    "core/send_order.py": "decides on order and rate",
    "core/write_pacing.py": "calls the connection back at the end of the loop turn",
    "postgres/append_answer.py": "reads the rows of `append`",
    "postgres/arrays.py": "encodes the parameters of `append`",
    "postgres/connection.py": "waits for libpq",
    "postgres/lanes.py": "chooses the lane",
    "wire/frames.py": "makes the frame of a payload",
    "postgres/lane_connection.py": "sends `append` and gets its rows",
}


class Function(NamedTuple):
    file: str
    name: str
    lines: int


class Walk:
    """The functions of chatd that this thread runs while entered, in the order of their first
    calls.
    """

    def __init__(self) -> None:
        self.codes: dict[CodeType, None] = {}

    def __enter__(self) -> Walk:
        self._before = sys.getprofile()
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _see(self, frame: FrameType, event: str, what: Any) -> None:
        if event == "call":
            self.codes.setdefault(frame.f_code)

    def functions(self) -> list[Function]:
        """Without comprehensions and lambdas, which stand in a function."""
        found: list[Function] = []
        lines: dict[str, dict[int, int]] = {}
        for code in self.codes:
            path = Path(code.co_filename)
            if HOME not in path.parents:
                continue
            file = path.relative_to(HOME).as_posix()
            if file not in lines:
                lines[file] = _lengths(path)
            if (length := lines[file].get(code.co_firstlineno)) is not None and not code.co_name.startswith("<"):
                found.append(Function(file, code.co_name, length))
        return found


def _lengths(path: Path) -> dict[int, int]:
    """First line -> number of lines, of each function of a file."""
    lengths: dict[int, int] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lengths[first] = node.end_lineno - first + 1
    return lengths


async def test_a_send_is_read_in_eight_files(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # What runs by the clock is not of the path.
    monkeypatch.setattr(chatd.server, "TICK_S", 3_600.0)
    monkeypatch.setattr(chatd.postgres.watch, "LOOK_S", 3_600.0)
    monkeypatch.setattr(chatd.server.Node, "_sweep", lambda node: asyncio.Event().wait())
    async with asyncio.timeout(WAIT_S):
        server = await make_server(lanes=1)
        alice = await Wire.connect(server.port, "alice", server.token("alice"))
        bob = await Wire.connect(server.port, "bob", server.token("bob"))
        for n in (1, 2):  # the first one makes the conversation
            with Walk() as walk:
                alice.put(alice.send("bob"))
                await alice.until(n)
                await bob.until(n)
    functions = walk.functions()
    files = list(dict.fromkeys(function.file for function in functions))
    whole = {file: len((HOME / file).read_text().splitlines()) for file in files}
    ran = {file: sum(one.lines for one in functions if one.file == file) for file in files}
    spine = [file for file in files if file in SPINE]
    for title, some in (("spine", spine), ("leaves", [file for file in files if file not in SPINE])):
        lines, of_them = sum(whole[f] for f in some), sum(ran[f] for f in some)
        print(f"{title}: {len(some)} files, {lines} lines, of which {of_them} ran")
        for file in some:
            names = ", ".join(function.name for function in functions if function.file == file)
            print(f"  {file:<28} {whole[file]:>5} {ran[file]:>5}  {names}")
    assert set(files) <= {*SPINE, *LEAVES}, "a file has joined the path: is it spine or leaf, and must it be there?"
    assert set(files) >= {*SPINE, *LEAVES}, "these are not on the path any more"
    assert tuple(spine) == SPINE, "in the order in which they are first entered"
    assert len(spine) <= SPINE_FILES_MAX
    assert sum(whole[file] for file in spine) <= SPINE_LINES_MAX
    assert {file: whole[file] for file in spine if whole[file] > SPINE_FILE_LINES_MAX} == {}
    assert sum(ran.values()) <= FUNCTION_LINES_MAX
