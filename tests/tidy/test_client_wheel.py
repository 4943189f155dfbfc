"""The distribution `chatd-client`: the client and what it needs of chatd, and no more. An empty
environment with its wheel chats.
"""

from __future__ import annotations

import ast
import asyncio
import configparser
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.fix_fake_chatd import FakeChatd

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "clients" / "python" / "pyproject.toml").read_text())
CLIENT = sorted((ROOT / "chatd" / "client").rglob("*.py"))
BY_CHOICE = {"pytest_asyncio"}  # an extra: what `chatd.client.testing.plugin` alone needs


def imported(path: Path) -> set[str]:
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{one.name}" for one in node.names}
    return names


def needed() -> tuple[set[str], set[str]]:
    """(modules of chatd beside the client, other top-level packages) that the client imports."""
    own, foreign, waiting = {"chatd.__init__"}, set[str](), list(CLIENT)
    while waiting:
        for name in imported(waiting.pop()):
            top, *rest = name.split(".")
            file = ROOT / "chatd" / f"{rest[0]}.py" if rest else None
            if top != "chatd":
                foreign.add(top)
            elif file is not None and file.exists() and f"chatd.{rest[0]}" not in own:
                own.add(f"chatd.{rest[0]}")
                waiting.append(file)
    return own, foreign - sys.stdlib_module_names


def test_it_has_the_modules_and_dependencies_that_the_client_imports() -> None:
    own, foreign = needed()
    assert set(PROJECT["tool"]["setuptools"]["py-modules"]) == own
    assert {name.split()[0] for name in PROJECT["project"]["dependencies"]} == foreign - BY_CHOICE
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in CLIENT}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages


def test_its_dependencies_are_those_of_the_server() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert set(PROJECT["project"]["dependencies"]) <= set(config["options"]["install_requires"].split("\n"))
    assert PROJECT["project"]["requires-python"] == config["options"]["python_requires"]


CHAT = """
import asyncio, sys
from importlib.util import find_spec

assert find_spec("chatd.server") is None and find_spec("psycopg") is None, "the client alone is here"
from chatd.client import Client, FileStore, sync

async def main(url):
    async with Client(url, token="me", device="d", store=FileStore("state.json")) as client:
        async for entry in client.entries():
            await entry.reply("re " + entry.body)
            break

asyncio.run(main(sys.argv[1]))
with sync.Client(sys.argv[1], token="me", device="s") as client:
    print(client.send("bob", "bye").seq)
"""


def run(*command: str | Path, cwd: Path) -> str:
    settings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
async def test_its_wheel_chats_in_an_empty_environment(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build leaves files beside its sources
    for folder in ("chatd", "clients/python"):
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
        )
    shutil.copy(ROOT / "LICENSE", source)
    await asyncio.to_thread(
        run, sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, source / "clients/python", cwd=tmp_path
    )
    (wheel,) = tmp_path.glob("chatd_client-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {str(path.relative_to(ROOT)) for path in CLIENT} <= names
    assert "chatd/client/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    empty = tmp_path / "venv"
    await asyncio.to_thread(run, sys.executable, "-m", "venv", "--without-pip", empty, cwd=tmp_path)
    python = empty / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    await asyncio.to_thread(run, *pip, "install", "-q", wheel, cwd=tmp_path)
    listed = await asyncio.to_thread(run, *pip, "list", "--format=freeze", cwd=tmp_path)
    assert {line.split("==")[0] for line in listed.splitlines()} == {"chatd-client", "orjson", "websockets"}
    async with FakeChatd() as server:
        chatting = asyncio.create_task(asyncio.to_thread(run, python, "-c", CHAT, server.url, cwd=tmp_path))
        await server.until_connected("me")
        server.say("bob", "me", "hi")
        assert await chatting == "3\n"
        assert server.texts("bob", "me") == ["hi", "re hi", "bye"]
