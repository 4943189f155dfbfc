"""The JavaScript of README.md, clients/js/README.md and docs/guides/: its programs run, and its types are right.

The client is compiled from its sources, into a folder like that of an application which installed it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.fix_process import MakeProcess
from tests.js.test_gates import PACKAGE, ROOT, needs_node
from tests.site import pages
from tests.site.blocks import files
from tests.site.programs import Page, line_of
from tests.site.test_page_programs import OWN_CLIENT

GUIDES: Final = [pages.DOCS / "guides" / name for name in ("javascript.md", "react.md", "vite.md")]
README: Final = pages.ROOT / "README.md"
SDK: Final = PACKAGE / "README.md"
SCRIPTS: Final = Path(__file__).parent

pytestmark = needs_node


def _tsc(project: Path, *flags: str) -> str:
    """What the compiler says; empty if nothing is wrong."""
    command = ["node", str(ROOT / "node_modules/typescript/bin/tsc"), "-p", str(project), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with @chatd/client and what the guides install beside it."""
    folder = tmp_path_factory.mktemp("application")
    modules = folder / "node_modules"
    (modules / "@chatd").mkdir(parents=True)
    for path in (ROOT / "node_modules").iterdir():
        if path.name != "@chatd":
            (modules / path.name).symlink_to(path)
    installed = modules / "@chatd" / "client"
    installed.mkdir()
    shutil.copy(PACKAGE / "package.json", installed)
    assert _tsc(PACKAGE / "tsconfig.build.json", "--outDir", str(installed / "dist")) == ""
    (folder / "package.json").write_text('{"type": "module"}')
    settings = {
        "extends": str(PACKAGE / "tsconfig.json"),
        "compilerOptions": {"types": [], "typeRoots": ["node_modules/@types"], "noEmit": False},
        "include": ["*.ts", "*.tsx"],
    }
    (folder / "tsconfig.json").write_text(json.dumps(settings))
    for guide in (README, SDK, *GUIDES):
        assert files(guide.read_text(), folder)
    return folder


@pytest.mark.parametrize("script", ["render.mjs", "render_readme.mjs"])
def test_the_types_are_right_and_the_react_code_chats(application: Path, script: str) -> None:
    assert _tsc(application / "tsconfig.json") == ""
    for name in ("stage.mjs", script):
        shutil.copy(SCRIPTS / name, application)
    done = subprocess.run(["node", script], cwd=application, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "bob wrote, alice answered\n", done.stderr


def test_a_fault_of_types_is_found(application: Path, tmp_path: Path) -> None:
    project = tmp_path / "seeded"
    shutil.copytree(application, project, symlinks=True)
    text = (project / "sending.ts").read_text()
    (project / "sending.ts").write_text(text.replace("error.code", "error.reason"))
    assert "sending.ts" in _tsc(project / "tsconfig.json")


async def test_the_programs_in_node_chat_over_a_kill_of_the_server(
    application: Path, make_process: MakeProcess, tmp_path: Path
) -> None:
    server = await make_process()
    page, own = Page(GUIDES[0], application, server), Page(OWN_CLIENT, tmp_path / "own", server)
    bob = f'python send.py {server.url} "$(chatd token bob)" alice'
    async with page.running("chat.mjs") as alice:
        assert f"{await line_of(alice)}\n" == page.command("chat.mjs")[1]
        await own.prints("", f"{bob} one")
        assert await line_of(alice) == "2 bob: one"
        server.kill()
        await server.start()
        await own.prints("", f"{bob} two")
        assert await line_of(alice) == "3 bob: two"
    assert await page.prints("answer.test.mjs") == page.command("answer.test.mjs")[1]


def _tested(application: Path) -> str:
    """What Node says of the tests in clients/js/README.md."""
    command = ["node", "--test", "--test-reporter=tap", "outbox.test.mjs"]
    return subprocess.run(command, cwd=application, capture_output=True, text=True, check=False, timeout=60).stdout


def test_the_tests_of_the_sdks_readme_pass_and_a_fault_is_found(application: Path) -> None:
    said = _tested(application)
    assert "\n# pass 2\n# fail 0\n" in said, said
    test = application / "outbox.test.mjs"
    text = test.read_text()
    test.write_text(text.replace("'cut after'", "{ code: 'refused' }"))
    assert "\n# pass 1\n# fail 1\n" in _tested(application)
    test.write_text(text)


async def test_the_program_of_the_readme_sends(application: Path, make_process: MakeProcess, tmp_path: Path) -> None:
    server = await make_process()
    page = Page(README, application, server, (("ws://127.0.0.1:8080/ws", server.url),))
    async with page.running("hello.mjs") as alice:
        assert await line_of(alice) == "stored as 1"
        own = Page(OWN_CLIENT, tmp_path / "own", server)
        await own.prints("", f'python send.py {server.url} "$(chatd token bob)" alice "hi alice"')
        assert await line_of(alice) == "bob: hi alice"
