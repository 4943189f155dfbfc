"""No command shows a traceback, whatever it is started in; a wrong setting is one line and exit
status 2 there, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.surroundings import NOBODY, SURROUNDINGS

ROOT: Final = Path(__file__).parents[2]
AWAY: Final = ("--database-url", "host=127.0.0.1 port=1 user=chatd")
KEYS: Final = ("--keys-file", "{folder}/keys.json")
COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "help": ("--help",),
    "help of serve": ("serve", "--help"),
    "config": ("config", *KEYS),
    "keys new": ("keys", "new", *KEYS),
    "keys list": ("keys", "list", *KEYS),
    "token": ("token", "alice", *KEYS),
    "token ü": ("token", "üäö", *KEYS),
    "doctor": ("doctor", *KEYS, *AWAY),
    "epoch": ("epoch", *KEYS, *AWAY),
    "migrate": ("migrate", *KEYS, *AWAY),
    "serve": ("serve", *KEYS, *AWAY, "--port", "0", "--admin-port", "-1"),
    "nodes": ("nodes", *KEYS, *AWAY, "--redis-url", "redis://127.0.0.1:1"),
}
WRONG: Final[dict[str, tuple[str, ...]]] = {
    "no setting": ("config", "--prot", "1"),
    "one word too many": ("config", "postgresql://u:s3cr3t@h/d"),
    "no command": ("serv",),
    "no user": ("token", *KEYS),
    "no value": ("serve", "--port"),
    "ttl": ("token", "alice", "--ttl-s", "0", *KEYS),
    "a setting": ("serve", "--port", "70000"),
    "a folder": ("config", "--config", "{folder}"),
    "bad url": ("migrate", "--database-url", "postgresql://u:s3cr3t%zz@h/d"),
    "bad redis": ("nodes", "--redis-url", "redis://:s3cr3t%zz@h"),
    "no keys": ("token", "alice", "--keys-file", "{folder}/none.json"),
    "keys of nobody": ("keys", "new", "--keys-file", "{folder}/none/keys.json"),
    "keys unset": ("keys", "list"),
    "bad address": ("tail", "alice", "--url", "http://h/ws", *KEYS),
    "bad port": ("tail", "alice", "--url", "ws://h:99999/ws", *KEYS),
    "bad name": ("tail", "a" * 65, "--url", "ws://h/ws", *KEYS),
    "admin host": ("serve", *KEYS, *AWAY, "--admin-host", "203.0.113.9"),
}
ALWAYS: Final = ("no setting", "a setting", "bad url", "no keys")
FAILS: Final = {"doctor", "epoch", "migrate", "serve", "nodes"}  # nobody answers there


class Result(NamedTuple):
    status: int
    out: str
    err: str


def surrounded(orders: list[tuple[str, list[str]]]) -> list[Result]:
    """What each command does in its surroundings."""
    run = [sys.executable, "-m", "tests.surroundings"]
    done = subprocess.run(run, input=json.dumps(orders), capture_output=True, text=True, check=True, cwd=ROOT)
    return [Result(*result) for result in json.loads(done.stdout)]


Results = dict[tuple[str, str], Result]


@pytest.fixture(scope="module")
def results() -> Iterator[Results]:
    with tempfile.TemporaryDirectory(prefix="chatd-surroundings-") as folder:
        Path(folder).chmod(0o777)  # for the user without an entry in passwd
        names: list[tuple[str, str]] = []
        orders: list[tuple[str, list[str]]] = []
        for surroundings in SURROUNDINGS:
            wrong = {name: argv for name, argv in WRONG.items() if surroundings == "plain" or name in ALWAYS}
            for name, argv in {**COMMANDS, **wrong}.items():
                names.append((surroundings, name))
                orders.append((surroundings, [word.format(folder=folder) for word in argv]))
        made = [sys.executable, "-m", "chatd", "keys", "new", "--keys-file", f"{folder}/keys.json"]
        subprocess.run(made, check=True, capture_output=True)
        if os.geteuid() == 0:
            os.chown(f"{folder}/keys.json", NOBODY, NOBODY)
        yield dict(zip(names, surrounded(orders), strict=True))


def lines(result: Result) -> list[str]:
    """What is said on stderr but for the log."""
    return [line for line in result.err.splitlines() if not line.startswith("{")]


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_no_command_shows_a_traceback(results: Results, surroundings: str) -> None:
    for (where, name), result in results.items():
        if where != surroundings:
            continue
        assert "Traceback" not in result.err + result.out, (name, result)
        assert len(lines(result)) <= 1, (name, result)
        assert "s3cr3t" not in result.err + result.out, (name, result)
        assert result.status in (0, 1, 2, 141), (name, result)


@pytest.mark.parametrize("surroundings", [name for name in SURROUNDINGS if "stderr" not in name])
def test_a_wrong_setting_is_one_line_and_exit_status_2(results: Results, surroundings: str) -> None:
    for name in WRONG if surroundings == "plain" else ALWAYS:
        result = results[surroundings, name]
        assert (result.status, len(lines(result))) == (2, 1), (name, result)
        assert result.err.startswith("chatd: "), (name, result)


@pytest.mark.parametrize(
    "surroundings", ["plain", "no home", "20 files", "ascii", "no stdin", "no stderr", "full stderr"]
)
def test_what_works_elsewhere_works_there(results: Results, surroundings: str) -> None:
    for name in COMMANDS:
        result = results[surroundings, name]
        is_short = surroundings == "20 files" and name == "serve"  # a node needs more
        assert result.status == (2 if is_short else 1 if name in FAILS else 0), (name, result)
        assert name in FAILS or result.out, (name, result)


@pytest.mark.parametrize(("surroundings", "status", "said"), [
    ("full disk", 1, "No space left"), ("no stdout", 1, "Bad file"), ("nobody reads", 141, ""),
])  # fmt: skip
def test_output_that_does_not_arrive_is_told_by_the_status(
    results: Results, surroundings: str, status: int, said: str
) -> None:
    for name in COMMANDS:
        if name in FAILS:
            continue
        result = results[surroundings, name]
        assert result.status == status, (name, result)
        assert said in "".join(lines(result)) if said else lines(result) == [], (name, result)


def test_what_was_meant_is_said(results: Results) -> None:
    assert "did you mean --port?" in results["plain", "no setting"].err
    assert "one word too many" in results["plain", "one word too many"].err
    assert "serve" in results["plain", "no command"].err


def test_where_hardly_a_file_may_be_open_no_database_is_begun(tmp_path: Path) -> None:
    commands = (["doctor"], ["migrate", "--dry-run"], ["serve", "--port", "0", "--admin-port", "-1"])
    for result in surrounded([("20 files", [*command, "--data-dir", str(tmp_path / "new")]) for command in commands]):
        assert (result.status, len(result.err.splitlines())) == (2, 1), result
        assert "open files" in result.err
    assert not (tmp_path / "new").exists()


def test_a_role_that_owns_nothing_is_one_line(empty_db: str) -> None:
    with psycopg.connect(empty_db, autocommit=True) as conn:
        conn.execute("DROP ROLE IF EXISTS owns_nothing")
        conn.execute("CREATE ROLE owns_nothing LOGIN")
    url = make_conninfo(empty_db, user="owns_nothing")
    commands = (["migrate"], ["epoch"], ["doctor"], ["serve", "--port", "0", "--admin-port", "-1"])
    results = surrounded([("plain", [*command, "--database-url", url]) for command in commands])
    for command, result in zip(commands, results, strict=True):
        assert "Traceback" not in result.err + result.out, (command, result)
        assert result.status in (1, 2), (command, result)
        assert len(lines(result)) == (command != ["doctor"]), (command, result)
    assert (results[0].status, results[3].status) == (2, 2)
    assert "bad   rights" in results[2].out
    assert "owner" in results[0].err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without an entry in passwd")
def test_without_a_home_a_command_that_needs_one_says_so() -> None:
    commands = (["token", "alice"], ["doctor"], ["nodes", "--redis-url", "redis://127.0.0.1:1"])
    token, doctor, nodes = surrounded([("no home", command) for command in commands])
    assert token.status == doctor.status == 2
    assert "--data-dir" in token.err
    assert (nodes.status, "data_dir" in nodes.err) == (1, False)


def test_every_command_takes_all_from_the_file(fresh_db: str, tmp_path: Path) -> None:
    file, keys = tmp_path / "chatd.toml", tmp_path / "keys.json"
    file.write_text(f'host = "0.0.0.0"\ndatabase_url = "{fresh_db}"\nkeys_file = "{keys}"\n')
    commands = (["keys", "new"], ["keys", "list"], ["doctor"], ["config"], ["token", "alice"], ["epoch"], ["migrate"])
    results = surrounded([("plain", [*command, "--config", str(file)]) for command in commands])
    for command, result in zip(commands, results, strict=True):
        assert (result.status, result.out != "") == (0, True), (command, result)
