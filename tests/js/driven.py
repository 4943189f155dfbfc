"""A client of the SDK that a test drives (tests/js/driven), wherever it runs, and the build of its programs.

Driven           `ask(name, ...)` has it do something; what it tells is in `history` and the attributes
NodeClients      many of them in one process of Node
build_driven     packs the SDK, installs it, and builds the page of a tab; a folder
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.faults.checker import Acked, Got, History, Sent
from tests.js.test_gates import PACKAGE, ROOT, TIMEOUT_S, build

SOURCES: Final = Path(__file__).parent / "driven"
OF_THE_WORKSPACE: Final = ("vite", "ws")
LINE_BYTES_MAX: Final = 16 << 20  # a whole conversation is one line


def tool(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"


def install_packed(folder: Path, of_the_workspace: Sequence[str]) -> None:
    """Install what `npm pack` makes of the SDK, offline, beside packages of the workspace."""
    build()
    tool(PACKAGE, "npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder))
    next(folder.glob("chatd-client-*.tgz")).rename(folder / "client.tgz")
    tool(folder, "npm", "install", "--offline", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock")
    for name in of_the_workspace:
        link = folder / "node_modules" / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(ROOT / "node_modules" / name)
    assert not (folder / "node_modules" / "@chatd" / "client").is_symlink()


def vite_build(folder: Path) -> Path:
    tool(folder, "node", "node_modules/vite/bin/vite.js", "build", "--base", "./", "--logLevel", "warn")
    return folder / "dist"


def build_driven(folder: Path) -> Path:
    """`node.mjs` can be run there, and `dist` is the page of a tab."""
    shutil.copytree(SOURCES, folder, dirs_exist_ok=True)
    install_packed(folder, OF_THE_WORKSPACE)
    vite_build(folder)
    return folder


class Gap(NamedTuple):
    """After seq `after` of `c` the entries up to `head` were fetched, and did not come as pushes."""

    c: str
    after: int
    head: int


class Refused(AssertionError):
    """A command was refused, by a code of the SDK."""


class Driven:
    """What one client was asked and what it told. `changed` is set at each event."""

    def __init__(self, user: str, name: str, changed: asyncio.Event) -> None:
        self.history = History(user, name)
        self.changed = changed
        self.gaps: list[Gap] = []
        self.faults: list[str] = []
        self.refcids: dict[tuple[str, int], str] = {}  # own changes that name their message by its cid alone
        self.unanswered: set[str] = set()
        self.unreported: set[str] = set()  # texts that it was asked to say, and has not told that it did
        self.mine: dict[str, list[str]] = {}  # by peer: cids of own messages that may be changed
        self.have: dict[str, int] = {}  # by conversation: the highest seq that was given
        self.line = ""
        self.role = ""
        self.stores_lost: list[str] = []
        self.acked = 0
        self.has_ended = False
        self.onlines = 0

    async def ask(self, name: str, *args: object) -> Any:
        raise NotImplementedError

    def heard(self, event: list[Any]) -> None:
        match event:
            case ["got", c, seq, ts, sender, kind, ref, body, cid]:
                if isinstance(ref, str):
                    self.refcids[c, seq] = ref
                self.history.events.append(
                    Got(c, seq, ts, sender, kind, ref if isinstance(ref, int) else None, body, cid)
                )
                self.have[c] = max(self.have.get(c, 0), seq)
            case ["sent", cid, to, kind, _, body]:
                self.history.events.append(Sent(cid, to, kind, None, body))
                self.unanswered.add(cid)
                self.unreported.discard(body)
                if kind == "message":
                    self.mine.setdefault(to, []).append(cid)
            case ["acked", cid, c, seq, ts]:
                # That it was given once is for `got` to show.
                self.history.events.append(Acked(c, seq, ts, cid, True))
                self.unanswered.discard(cid)
                self.acked += 1
            case ["gap", c, after, head]:
                self.gaps.append(Gap(c, after, head))
            case ["line", state, _]:
                self.line = state
                self.onlines += state == "online"
            case ["role", role]:
                self.role = role
            case ["store", reason]:
                self.stores_lost.append(reason)
            case ["refused", cid, code]:
                self.unanswered.discard(cid)
                self.faults.append(f"{cid} was refused: {code}")
            case _:
                self.faults.append(str(event))
        self.changed.set()


class _NodeClient(Driven):
    def __init__(self, process: NodeClients, number: int, user: str, name: str, changed: asyncio.Event) -> None:
        super().__init__(user, name, changed)
        self._process, self._number = process, number

    async def ask(self, name: str, *args: object) -> Any:
        return await self._process.ask(self._number, name, *args)


class NodeClients:
    """Clients of the SDK in one process of Node: `async with NodeClients(...) as node`, then `node.clients`.

    `specs`: url, token, user and device of each, and perhaps fault.
    """

    def __init__(self, folder: Path, specs: Sequence[dict[str, str]], changed: asyncio.Event) -> None:
        self._folder, self._specs = folder, specs
        self.clients = [_NodeClient(self, n, one["user"], one["device"], changed) for n, one in enumerate(specs)]
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0

    async def __aenter__(self) -> NodeClients:
        self._process = await asyncio.create_subprocess_exec(
            "node",
            str(self._folder / "node.mjs"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
        )
        self._write(list(self._specs))
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        if self._reading is not None:
            await self._reading

    async def ask(self, number: int, name: str, *args: object) -> Any:
        self._last_id += 1
        answer = self._answers[self._last_id] = asyncio.get_running_loop().create_future()
        self._write([number, self._last_id, name, *args])
        return await answer

    def _write(self, line: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            number, id_, *rest = json.loads(line)
            if id_ == 0:
                self.clients[number].heard(rest)
            else:
                self._answered(self._answers.pop(id_), rest)
        for answer in self._answers.values():
            self._answered(answer, [None, "the process ended"])
        self._answers.clear()

    @staticmethod
    def _answered(answer: asyncio.Future[Any], rest: list[Any]) -> None:
        if answer.done():
            return  # whoever asked has been cancelled
        if len(rest) == 1:
            answer.set_result(rest[0])
        else:
            answer.set_exception(Refused(rest[1]))
