"""The install of docs/operations.md, word for word, until two people chat.

    python -m tests.install          as root; the machine stays as it is: all is done in a mount namespace, over what is there
    python -m tests.install --plan   only show the commands

Commands are the ```sh blocks of the section Install, the file is its ```toml block. Three things are not done as they stand there, each with a word
about it: what is installed already is not installed again by apt; the password is typed on a terminal of ours; and without systemd the unit is not
started by `systemctl`, but its ExecStart is run, as a user of its own in the groups that it names, with a NOTIFY_SOCKET, as systemd would.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "operations.md"
LAYERS: Final = ("/etc", "/opt", "/usr", "/var", "/run", "/root")
INSIDE: Final = "CHATD_INSTALL_INSIDE"
PASSWORD: Final = "correct-horse"
READY_S_MAX: Final = 60.0
COMMAND_S_MAX: Final = 120.0  # without a word
CANNOT: Final = 77
CHAT: Final = """
import asyncio, sys
from chatd.client import Client, Entry

async def main():
    url, alice_token, bob_token = sys.argv[1:]
    async with Client(url, token=alice_token, device="a") as alice, Client(url, token=bob_token, device="b") as bob:
        await alice.send("bob", "hello bob")
        async for entry in bob.entries():
            if entry.body == "hello bob":
                break
        await bob.send("alice", "hello alice")
        async for entry in alice.entries():
            if entry.body == "hello alice":
                break
    print("two people have chatted")

asyncio.run(asyncio.wait_for(main(), 30))
"""


def blocks() -> list[tuple[str, str]]:
    """(language, text) of the code blocks of Install, in order."""
    page = PAGE.read_text()
    section = page[page.index("## Install\n") :]
    section = section[: section.index("\n## ", 5)]
    return re.findall(r"```(sh|toml)\n(.*?)```", section, re.DOTALL)


def commands() -> Iterator[str]:
    """Shell commands, and `toml:...` for the file of settings."""
    for language, text in blocks():
        if language == "toml":
            yield "toml:" + text
        else:
            yield from (line for line in text.splitlines() if line.strip())


def say(text: str) -> None:
    print(f"install: {text}", flush=True)


# ---- a machine of its own ---------------------------------------------------------------------------------------------------------------


def enter() -> int:
    """Run this again in namespaces of its own. What it writes goes with them."""
    if os.geteuid() != 0:
        say("cannot: it needs root, as the page's commands do")
        return CANNOT
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
        say("cannot: no mount namespace can be made here, and the machine is to stay as it is")
        return CANNOT
    with tempfile.TemporaryDirectory(prefix="chatd-install-") as place:
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        return subprocess.run([*command, sys.executable, "-m", "tests.install"], env={**os.environ, INSIDE: place}, cwd=ROOT, check=False).returncode


def lay_over(place: Path) -> None:
    """Each folder that the commands write to gets a layer in memory."""
    run("mount", "-t", "tmpfs", "tmpfs", str(place))
    for folder in LAYERS:
        upper, work = place / "upper" / folder.strip("/"), place / "work" / folder.strip("/")
        for made in (upper, work):
            made.mkdir(parents=True)
        shutil.copystat(folder, upper)
        run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={folder},upperdir={upper},workdir={work}", folder)


def run(*command: str, **more: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **more})
    if done.returncode != 0:
        raise SystemExit(f"install: failed ({done.returncode}): {' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


# ---- the commands ------------------------------------------------------------------------------------------------------------------------


class Machine:
    """Does one command after the other, as somebody at its terminal would."""

    def __init__(self, clone: Path, place: Path) -> None:
        self.clone, self.place = clone, place
        self.settings = ""
        self.daemons: list[subprocess.Popen[bytes]] = []

    def do(self, command: str) -> None:
        say(f"$ {command}" if not command.startswith("toml:") else "the file of settings")
        word = command.split()[0]
        if word == "apt-get":
            self.apt(command)
        elif word == "systemctl":
            self.start_unit()
        elif word.startswith("toml:"):
            self.settings = command.removeprefix("toml:").replace("PASSWORD", PASSWORD)
        elif "editor" in word:
            path = Path(command.split()[1])
            path.write_text(self.settings)
        else:
            self.type(command)

    def apt(self, command: str) -> None:
        packages = [word for word in command.split()[2:] if not word.startswith("-")]
        shown = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Status}\n", *packages], capture_output=True, text=True, check=False)
        missing = [name for name in packages if f"{name} install ok installed" not in shown.stdout]
        if missing:
            with (Path("/usr/sbin/policy-rc.d")).open("w") as policy:
                policy.write("#!/bin/sh\nexit 101\n")
            Path("/usr/sbin/policy-rc.d").chmod(0o755)
            words = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing]
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            if subprocess.run(words, capture_output=True, check=False, env={**os.environ, **quiet}).returncode != 0:
                run("apt-get", "update", "-qq")
                run(*words, **quiet)
        else:
            say("  installed already")
        self.start_postgres()

    def start_postgres(self) -> None:
        """Debian starts it when it is installed, where systemd runs."""
        say("  no systemd runs here: PostgreSQL is started by Debian's own pg_ctlcluster")
        version = max((p.name for p in Path("/usr/lib/postgresql").iterdir()), key=float)
        if not Path(f"/etc/postgresql/{version}/main").exists():
            run("pg_createcluster", version, "main")
        Path("/run/postgresql").mkdir(exist_ok=True)
        run("chown", "postgres:postgres", "/run/postgresql")
        run("pg_ctlcluster", "--skip-systemctl-redirect", version, "main", "start")

    def type(self, command: str) -> None:
        """On a terminal; what asks for a password gets it."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(self.clone)
            os.execvp("bash", ["bash", "-euc", command])
        said, answered = b"", 0
        while True:
            ready, _, _ = select.select([terminal], [], [], COMMAND_S_MAX)
            if not ready:
                os.kill(pid, signal.SIGKILL)
            try:
                data = os.read(terminal, 4096) if ready else b""
            except OSError:  # how a terminal tells its end
                data = b""
            if not data:
                break
            said += data
            if re.search(rb"(assword.*|again): *$", said[answered:]):
                answered = len(said)
                time.sleep(0.2)  # who asks for a password first drops what was typed before
                os.write(terminal, f"{PASSWORD}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(terminal)
        shown = said.decode(errors="replace").strip()
        for line in shown.splitlines()[-12:]:
            print(f"  {line}")
        if status != 0:
            raise SystemExit(f"install: failed ({status}): {command}\n{shown[-2000:]}")

    def start_unit(self) -> None:
        """As systemd would, of what matters here: the user, its groups, the directories, the notice that it is ready."""
        say("  no systemd runs here: the unit's ExecStart is run with a NOTIFY_SOCKET")
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read("/etc/systemd/system/chatd.service")
        service = unit["Service"]
        run("useradd", "--system", "--no-create-home", "--groups", service["SupplementaryGroups"], service["User"])
        ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ear.bind(str(self.place / "notify"))
        (self.place / "notify").chmod(0o666)
        self.place.chmod(0o755)
        ear.settimeout(READY_S_MAX)
        environment = {"PATH": "/usr/bin:/bin", "NOTIFY_SOCKET": str(self.place / "notify"), "STATE_DIRECTORY": "/var/lib/chatd"}
        log = (self.place / "chatd.log").open("wb")
        as_user = ["setpriv", f"--reuid={service['User']}", f"--regid={service['User']}", "--init-groups", "--no-new-privs"]
        command = [*as_user, *service["ExecStart"].split()]
        self.daemons.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"))
        try:
            assert ear.recv(4096).startswith(b"READY=1")
        except TimeoutError:
            raise SystemExit(f"install: it is not ready; it said:\n{(self.place / 'chatd.log').read_text()[-2000:]}") from None
        say("  READY=1")

    def stop(self) -> None:
        for daemon in self.daemons:
            daemon.terminate()
            status = daemon.wait(30)
            say(f"SIGTERM: exit status {status}")
            if status != 0:
                raise SystemExit((self.place / "chatd.log").read_text()[-2000:])


def check(machine: Machine) -> None:
    """What the page promises: two people chat, the admin port answers, every command works with the file alone."""
    config = ["--config", "/etc/chatd/chatd.toml"]
    bare = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    for words in (["doctor"], ["config"], ["epoch"], ["migrate", "--dry-run"], ["keys", "list"]):
        done = subprocess.run(["chatd", *words, *config], capture_output=True, text=True, check=False, env=bare, cwd="/")
        if done.returncode != 0:
            raise SystemExit(f"install: chatd {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
    tokens = [
        subprocess.run(["chatd", "token", user, *config], capture_output=True, text=True, check=True, env=bare, cwd="/").stdout.strip()
        for user in ("alice", "bob")
    ]
    say(run("/opt/chatd/venv/bin/python", "-c", CHAT, "ws://127.0.0.1:8080/ws", *tokens).strip())
    metrics = urllib.request.urlopen("http://127.0.0.1:8081/metrics", timeout=5).read().decode()
    assert "process_resident_memory_bytes" in metrics
    assert json.loads(urllib.request.urlopen("http://127.0.0.1:8081/readyz", timeout=5).read()) == {"ready": True}
    for name, mode in (("keys.json", 0o640), ("chatd.toml", 0o640)):
        assert (Path("/etc/chatd") / name).stat().st_mode & 0o777 == mode, name
    say("metrics, readiness, commands and modes are right")


def copy_of_checkout(place: Path) -> Path:
    """A clone as the page has it: what git knows, with the changes at hand."""
    clone = place / "clone"
    names = run("git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z").split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    return clone


def inside(place: Path) -> int:
    try:
        lay_over(place)
    except SystemExit as e:
        say(f"cannot: no layers can be mounted here, and the machine is to stay as it is ({e})")
        return CANNOT
    run("mount", "-t", "proc", "proc", "/proc")
    machine = Machine(copy_of_checkout(place), place)
    began = time.monotonic()
    try:
        for command in commands():
            machine.do(command)
        check(machine)
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            machine.stop()
    say(f"done in {time.monotonic() - began:.0f} s; TLS (a proxy in front) and systemd itself were not tried")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plan", action="store_true", help="only show the commands")
    if parser.parse_args().plan:
        print("\n".join(commands()))
        return 0
    place = os.environ.pop(INSIDE, "")
    return inside(Path(place)) if place else enter()


if __name__ == "__main__":
    sys.exit(main())
