"""The gates of clients/js, each a script of its package.json.

Without Node.js 20 or later, or without node_modules, they are skipped and say why. `make lint` runs
Biome and the compiler's check of the tests' types.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from chatd.conformance import vectors
from chatd.conformance.against_client import ClientTrial
from chatd.conformance.against_rules import Walks
from chatd.conformance.report import ConformanceReport, Verdict

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = ROOT / "clients" / "js"
TIMEOUT_S: Final = 300  # for what hangs
PAGE: Final = ROOT / "chatd" / "web"
# Gives what is in compressed files, one after the other.
UNPACK: Final = """
const { readFileSync } = require('node:fs');
const { brotliDecompressSync, gunzipSync } = require('node:zlib');
for (const file of process.argv.slice(1)) {
  const bytes = readFileSync(file);
  process.stdout.write(file.endsWith('.br') ? brotliDecompressSync(bytes) : gunzipSync(bytes));
}
"""
PAGE_BYTES_MAX: Final = 70_000  # of script and styles, gzip
SIGN_IN_BYTES_MAX: Final = 20_000  # of these, before the sign-in shows
SIZE_AIMS: Final = {"core": 8 * 1024, "all but React and testing": 12 * 1024, "React": 2 * 1024}  # gzip


def missing() -> str | None:
    """Why the gates cannot run here."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return "Node.js is not installed: 20 or later runs the tests of clients/js"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").partition(".")[0]) < 20:
        return f"Node.js is {version}: 20 or later runs the tests of clients/js"
    if not (ROOT / "node_modules" / ".package-lock.json").exists():
        return "node_modules is not there: `make setup` installs it"
    return None


MISSING: Final = missing()
needs_node = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")


def run(script: str, *arguments: str, workspace: str = "clients/js") -> str:
    """A script of the workspace's package.json; gives what it printed."""
    command = ["npm", "run", "--silent", script, "--workspace", workspace, "--", *arguments]
    env = {**os.environ, "NODE_OPTIONS": "", "NO_COLOR": "1", "CI": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{script}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build() -> None:
    """`dist` is what the sources say. Several processes may ask: one builds at a time, and only what is old."""
    sources = [PACKAGE / "src", *(PACKAGE / "src").rglob("*"), *PACKAGE.glob("tsconfig*.json")]
    stamp = ROOT / "node_modules" / ".clients-js-built"
    with stamp.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_there = stamp.read_text() == "built" and (PACKAGE / "dist" / "index.js").exists()
        if is_there and stamp.stat().st_mtime > max(path.stat().st_mtime for path in sources):
            return
        run("build")
        stamp.write_text("built")


@needs_node
def test_the_types_of_frames_are_those_of_the_schemas() -> None:
    run("frames", "--check")


@needs_node
def test_the_client_passes_its_tests() -> None:
    passed = re.search(r"Tests +(\d+) passed", run("test"))
    assert passed is not None
    assert int(passed[1]) > 0


@pytest.fixture(scope="module")
def built() -> None:
    build()


@needs_node
@pytest.mark.usefixtures("built")
def test_the_package_resolves_everywhere() -> None:
    """publint and are-the-types-wrong, over what `npm pack` would publish."""
    run("package")


@needs_node
@pytest.mark.usefixtures("built")
def test_the_client_is_no_larger_than_it_was() -> None:
    """size-limit, by the limits in package.json: they only fall, and follow what is reached."""
    run("size")


@needs_node
@pytest.mark.usefixtures("built")
@pytest.mark.xfail(strict=True, reason="clients/js/README.md tells how far the aims are")
def test_the_client_is_as_small_as_it_is_to_be() -> None:
    found = {one["name"]: one["size"] for one in json.loads(run("size", "--json"))}
    assert found.keys() >= SIZE_AIMS.keys()
    assert {name: found[name] for name, aim in SIZE_AIMS.items() if found[name] > aim} == {}


@needs_node
def test_the_parts_of_the_page_pass_their_tests() -> None:
    passed = re.search(r"Tests +(\d+) passed", run("test", workspace="web"))
    assert passed is not None
    assert int(passed[1]) > 0


@needs_node
def test_the_page_that_is_served_is_the_one_that_its_sources_make(tmp_path: Path) -> None:
    """Byte by byte. `npm run build -w web` makes it current.

    Compressed files depend on the release of Node: they must unpack to theirs.
    """
    run("build", str(tmp_path), workspace="web")
    made, served = _files(tmp_path), _files(PAGE)
    assert set(made) == set(served)
    plain = [name for name in made if not name.endswith((".br", ".gz"))]
    assert [name for name in plain if made[name] != served[name]] == []
    compressed = [name for name in made if name not in plain]
    unpacked = subprocess.run(
        ["node", "-e", UNPACK, *(str(PAGE / name) for name in compressed)], capture_output=True, check=True
    ).stdout
    assert unpacked == b"".join(made[name.rpartition(".")[0]] for name in compressed)


def _files(folder: Path) -> dict[str, bytes]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.suffix.startswith(".py")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_the_page_is_small() -> None:
    """All of it, and what the sign-in waits for."""
    sizes = {path.name.partition("-")[0]: path.stat().st_size for path in (PAGE / "assets").glob("*.gz")}
    assert set(sizes) == {"index", "room", "style"}
    assert sum(sizes.values()) <= PAGE_BYTES_MAX
    assert sizes["index"] + sizes["style"] <= SIGN_IN_BYTES_MAX


def test_the_page_never_turns_text_into_markup() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setAttribute\('style'"
        r"|javascript:|DOMParser|setHTML"
    )
    sources = [path for path in (ROOT / "web").rglob("*") if path.suffix in {".ts", ".tsx", ".js", ".html", ".svg"}]
    sources = [path for path in sources if not {"node_modules", "test"} & set(path.parts)]
    assert len(sources) > 20
    assert [path.name for path in sources if forbidden.search(path.read_text())] == []


def test_the_document_has_no_inline_script_or_style() -> None:
    text = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|<script(?![^>]* src=)|\son[a-z]+=|\sstyle=", text)
    assert not re.search(r"""(?:src|href)=["'](?!\./)""", text), "all is relative: a proxy may strip a prefix"


@needs_node
def test_the_reference_builds_without_a_warning() -> None:
    run("docs")


@needs_node
async def test_the_client_passes_the_conformance_kit_behind_its_adapter() -> None:
    build()
    report = ConformanceReport("clients/js")
    command = f"node {ROOT / 'clients' / 'adapters' / 'js.mjs'}"
    walks = Walks(count=4)
    await ClientTrial(command, report, lambda _: None, jobs=4).run(vectors.load("client"), walks, walks.names())
    assert [case for case in report.cases if case.verdict is not Verdict.PASSED] == []


def test_the_client_depends_on_nothing_at_run_time() -> None:
    package = json.loads((PACKAGE / "package.json").read_text())
    assert "dependencies" not in package
    assert set(package["peerDependencies"]) == set(package["peerDependenciesMeta"]) == {"react"}


def test_every_locked_package_has_a_hash_and_comes_from_the_registry() -> None:
    lock = json.loads((ROOT / "package-lock.json").read_text())
    found = {name: one for name, one in lock["packages"].items() if "node_modules/" in name and not one.get("link")}
    assert found
    assert [name for name, one in found.items() if not one.get("integrity", "").startswith("sha512-")] == []
    registry = "https://registry.npmjs.org/"
    assert [name for name, one in found.items() if not one.get("resolved", registry).startswith(registry)] == []
