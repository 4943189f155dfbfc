"""What the page promises of an installed chatd, each looked at from outside: chat over TLS,
addresses, metrics, journal, signals.

Each function raises Failed with what it saw.
"""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from typing import Any, Final

from tests.install.machine import Failed, Machine, say
from tests.install.page import nginx_files

NAME: Final = "chat.example.org"
URL: Final = f"wss://{NAME}/ws"
INSIDE: Final = "/root/inside"  # our programs there
CA: Final = "/root/ca.pem"
CONFIG: Final = ("--config", "/etc/chatd/chatd.toml")
PYTHON: Final = "/opt/chatd/venv/bin/python"
ADMIN_PORTS: Final = (8081, 8082)
ADDRESSES: Final = {"alice": "127.0.0.2", "bob": "::1"}  # as in inside/chat.py
MODES: Final = {"/etc/chatd": "750", "/etc/chatd/keys.json": "640", "/etc/chatd/chatd.toml": "640"}


def expect(is_so: bool, what: str, seen: object = "") -> None:
    if not is_so:
        raise Failed(f"not so: {what}; seen: {seen}")


def lay_certificate(machine: Machine, page: str) -> None:
    """A certificate of an authority of our own, where the page's nginx looks for it; the name leads
    to this machine.
    """
    certificate, key = nginx_files(page)
    with (machine.root / "etc/hosts").open("a") as hosts:
        hosts.write(f"127.0.0.1 {NAME}\n::1 {NAME}\n")
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    machine.run("sh", "-euc", f"{new} -subj '/CN=install' -keyout /root/ca.key -out {CA} 2>&1")
    machine.run(
        "sh",
        "-euc",
        f"{new} -CA {CA} -CAkey /root/ca.key -subj '/CN={NAME}' -addext 'subjectAltName=DNS:{NAME}'"
        f" -addext basicConstraints=critical,CA:FALSE -keyout {key} -out {certificate} 2>&1",
    )
    machine.run("chmod", "600", key)


def tokens(machine: Machine) -> list[str]:
    return [machine.run("chatd", "token", user, *CONFIG).strip() for user in ("alice", "bob")]


def chat(machine: Machine) -> None:
    """Two people chat over TLS, at both nodes; the log has each at an address of their own."""
    say(machine.run(PYTHON, "-I", INSIDE + "/chat.py", URL, CA, *tokens(machine)).strip() + f" over {URL}")
    opened = [line for line in journal(machine) if line.get("event") == "session.opened"]
    for user, address in ADDRESSES.items():
        seen = {line["address"] for line in opened if line["user"] == user}
        expect(seen == {address}, f"session.opened tells {user}'s own address", seen)
    nodes = {str(line.get("node")) for line in opened}
    say(
        "session.opened: "
        + ", ".join(f"{user} at {address}" for user, address in ADDRESSES.items())
        + f", at the nodes {sorted(nodes)}"
    )
    crossed = sum(float(metric(machine, port, "chatd_bus_messages_total")) for port in ADMIN_PORTS)
    expect(crossed > 0 and len(nodes) == 2, "a message crossed from one node to the other by Redis", (crossed, nodes))


def journal(machine: Machine) -> list[dict[str, Any]]:
    """The unit's lines in the journal, each with systemd's `PRIORITY`."""
    lines = [
        json.loads(line) for line in machine.run("journalctl", "-u", "chatd", "-o", "json", "--no-pager").splitlines()
    ]
    ours = [line for line in lines if str(line["MESSAGE"]).startswith("{")]  # and not those of systemd about the unit
    return [{**json.loads(line["MESSAGE"]), "PRIORITY": line["PRIORITY"]} for line in ours]


def priorities(machine: Machine) -> None:
    """`journalctl -p warning` finds warnings: each line has the priority of its level."""
    wanted = {"debug": "7", "info": "6", "warning": "4", "error": "3"}
    seen = {(line["level"], line["PRIORITY"]) for line in journal(machine)}
    expect({level for level, _ in seen} >= {"info", "warning"}, "there are lines of two levels at least", seen)
    expect(all(wanted[level] == priority for level, priority in seen), "each line has the priority of its level", seen)
    say(f"journal: level and priority {sorted(seen)}")


def metrics(machine: Machine, port: int) -> str:
    code = (
        f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{port}/metrics',"
        " timeout=5).read().decode())"
    )
    return machine.run(PYTHON, "-Ic", code)


def metric(machine: Machine, port: int, name: str) -> str:
    found = re.search(rf"^{name} (\S+)$", metrics(machine, port), re.MULTILINE)
    expect(found is not None, f"{name} is among the metrics of {port}")
    return found[1] if found else ""


def process_metrics(machine: Machine) -> None:
    """They are there under the unit's `ProcSubset=pid`."""
    names = (
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_max_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
    )
    seen = {name: metric(machine, ADMIN_PORTS[0], name) for name in names}
    # Without CAP_SYS_RESOURCE systemd gives no more
    limit = min(int(unit(machine, "LimitNOFILE")), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    expect(
        float(seen["process_max_fds"]) == limit,
        "process_max_fds is the unit's LimitNOFILE, or what this machine has",
        (seen, limit),
    )
    say(
        "process_* metrics: "
        + ", ".join(f"{name.removeprefix('process_')} {float(value):g}" for name, value in seen.items())
    )


def commands(machine: Machine) -> None:
    """Every command works with the file alone; files have the page's modes; the unit is sound to
    systemd.
    """
    for words in (
        ["doctor"],
        ["config"],
        ["epoch"],
        ["migrate", "--dry-run"],
        ["keys", "list"],
        ["nodes"],
        ["user", "show", "bob"],
    ):
        machine.run("chatd", *words, *CONFIG)
    for path, mode in MODES.items():
        expect(
            machine.run("stat", "-c", "%a %U %G", path).split() == [mode, "root", "chatd-config"],
            f"{path} has mode {mode}",
        )
    machine.run("systemd-analyze", "verify", "/etc/systemd/system/chatd.service")
    say(
        "commands, modes and `systemd-analyze verify` are right; "
        + machine.run("systemd-analyze", "security", "chatd").strip().splitlines()[-1].lstrip("→ ")
    )


def unit(machine: Machine, name: str) -> str:
    return machine.run("systemctl", "show", "chatd", "--property", name, "--value").strip()


def signals(machine: Machine) -> None:
    """What systemd heard: ready, the watchdog, a reload."""
    seen = {name: unit(machine, name) for name in ("ActiveState", "StatusText", "Type", "WatchdogUSec", "NRestarts")}
    expect(
        seen
        == {
            "ActiveState": "active",
            "StatusText": "serving",
            "Type": "notify",
            "WatchdogUSec": "30s",
            "NRestarts": "0",
        },
        "READY=1 was heard",
        seen,
    )
    before = int(unit(machine, "WatchdogTimestampMonotonic"))
    until(lambda: int(unit(machine, "WatchdogTimestampMonotonic")) > before, "WATCHDOG=1 is heard again and again")
    machine.run("systemctl", "reload", "chatd")
    until(lambda: any(line.get("event") == "keys.reloaded" for line in journal(machine)), "SIGHUP reads the keys again")
    until(lambda: unit(machine, "StatusText") == "serving", "it serves after a reload")
    user = machine.run("ps", "-o", "user=", "-p", unit(machine, "MainPID")).strip()
    expect(user == "chatd", "it runs as the unit's user", user)
    say("systemd: READY=1, STATUS=serving, WATCHDOG=1, reload; as the user chatd")


def until(is_so: Callable[[], bool], what: str, tries: int = 100) -> None:
    """Each try is a command of its own, some 20 ms."""
    expect(any(is_so() for _ in range(tries)), what)
