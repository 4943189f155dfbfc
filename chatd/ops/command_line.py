"""The command line of `chatd`: its commands and flags, parsed by argparse.

`chatd` alone is `chatd serve`. Every command takes all settings as flags, so that one line can be
edited into another; only `chatd serve --help` and `chatd config --help` list them.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from chatd import __version__, config_sources
from chatd.config import TOKEN_TTL_S_MAX, mask_password, one_line
from chatd.errors import SettingError

TTL_S: Final = 86_400  # of the tokens of `chatd token`, in seconds

EPILOG: Final = """\
examples:
  chatd                                   try it: with PostgreSQL and a page to chat on, without configuration
  chatd serve --config /etc/chatd/chatd.toml    as a service (docs/operations.md)
  chatd serve --workers 4 --redis-url redis://127.0.0.1    four nodes on one port (docs/cluster.md)
  chatd nodes --redis-url redis://127.0.0.1                list the nodes
  chatd keys new --keys-file keys.json    a key to sign tokens with
  chatd token alice                       a token for development
  chatd tail alice                        watch alice's messages as they arrive
  chatd chat alice                        chat as alice in this terminal
  chatd user show alice                   where alice is connected, and why messages may not arrive
  chatd conformance ws://127.0.0.1:8080/ws    whether a server keeps the protocol
  chatd doctor                            what would keep chatd from running well here
"""

CONFORMANCE_EPILOG: Final = """\
examples:
  chatd conformance ws://127.0.0.1:8080/ws                  chatd on this machine, in development
  chatd conformance wss://chat.example/ws --token-command 'mint --sub {user} --ttl {ttl_s}'
  chatd conformance --launch 'chatd serve --port 0 --data-dir /tmp/try' --data-dir /tmp/try
  chatd conformance --client 'node my-adapter.mjs'          a client's program
  chatd conformance ws://127.0.0.1:8080/ws --only 04_send   some cases alone
  chatd conformance --list                                  what is tried, and what each case needs

A case is a vector (what is sent, what must be answered), a random walk (people chat, lose their lines and come
back, and a model knows what must be there), or a schema of the frames. One that needs control of the server,
such as other limits, is "not run" and never counts as passed: --launch can run it.
docs/conformance.md has the vectors, the line protocol for clients, and the reports.
exit status: 0 nothing failed, 1 something failed or nothing could be tried, 2 a flag is wrong
"""

CHAT_EPILOG: Final = """\
examples:
  chatd chat alice              the screen of alice: F1 shows its keys, Ctrl+Q quits
  chatd chat alice bob          the same, with bob opened
  echo built | chatd chat ci alice                one message from a script
  chatd chat alice --url wss://chat.example/ws --keys-file keys.json
The screen needs textual; in a clone: .venv/bin/pip install --require-hashes -r requirements/tui.txt
"""


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; `command` is its command.

    Raises SettingError for a wrong one, SystemExit after `--help` and `--version`.
    """
    words = list(args)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words.insert(0, "serve")
    options, unknown = _parser().parse_known_args(words)
    if unknown:
        raise SettingError(_unknown(unknown[0], options.parser))
    return options


class _Parser(argparse.ArgumentParser):
    """Raises SettingError for a wrong flag; text that cannot be written is an error, too."""

    def error(self, message: str) -> NoReturn:
        raise SettingError(f"{one_line(message)}; see `{self.prog} --help`")

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file or sys.stdout)


def _unknown(word: str, parser: argparse.ArgumentParser) -> str:
    """The error for an unknown word. Shows a flag only up to `=`: the rest may be a password."""
    flag = one_line(mask_password(word.partition("=")[0]))
    if not flag.startswith("-"):
        return f"{flag}: is one word too many; see `{parser.prog} --help`"
    near = difflib.get_close_matches(flag.replace("_", "-"), list(parser._option_string_actions), n=1)
    return f"{flag}: is no flag of `{parser.prog}`; " + (
        f"did you mean {near[0]}?" if near else f"see `{parser.prog} --help`"
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="chatd",
        description="A real-time 1:1 chat server.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"chatd {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, help: str, *relevant: str) -> argparse.ArgumentParser:
        """A command; `relevant`: the settings that matter to it; without any, all are listed."""
        flags = " ".join(f"--{name.replace('_', '-')}" for name in relevant)
        epilog = f"all settings of `chatd serve` are taken too; what matters here: {flags}" if relevant else None
        sub = commands.add_parser(name, help=help, description=help, epilog=epilog)
        sub.set_defaults(command=name, parser=sub)
        sub.add_argument(
            "--config", dest="config_file", type=Path, metavar="FILE", help="TOML file of settings (also: CHATD_CONFIG)"
        )
        config_sources.add_flags(sub, shown=not relevant)
        return sub

    command("serve", "run the server (also: no command at all)")
    command("config", "print the settings in force and where each comes from, passwords masked")
    sub = command("migrate", "bring the database's schema up to this release", "database_url", "data_dir")
    sub.add_argument("--post", action="store_true", help="also remove what only the release before needs")
    sub.add_argument("--dry-run", action="store_true", help="only print what would be applied")
    relevant: tuple[str, ...] = "keys_file", "data_dir", "jwt_audience", "jwt_issuer", "token_ttl_max_s"
    sub = command("token", "print a token for a user, signed by the key in force", *relevant)
    sub.add_argument("user", metavar="USER", help="user id")
    sub.add_argument(
        "--ttl-s",
        type=_ttl_s,
        metavar="S",
        help=f"how long it is valid (default: {TTL_S} s, or token_ttl_max_s if that is less)",
    )
    _add_keys(command)
    sub = command("tail", "show a user's messages as they arrive", "host", "port", "keys_file", "data_dir")
    sub.add_argument("user", metavar="USER", help="user id")
    sub.add_argument("--url", metavar="URL", help="the server's WebSocket (default: that of host and port)")
    _add_chat(command)
    relevant = "database_url", "database_replica_url", "redis_url", "keys_file", "data_dir"
    command("doctor", "check database, Redis, clock and limits, and say what to do", *relevant)
    relevant = "redis_url", "redis_prefix", "lease_ms", "data_dir"
    sub = command("nodes", "list the nodes: sessions, versions, ages of their leases", *relevant)
    sub.add_argument("--json", action="store_true", help="for machines")
    relevant = "database_url", "data_dir", "redis_url", "redis_prefix", "admin_host", "admin_port"
    what = "show a user's sessions, cursors and queues, and why messages may not arrive"
    sub = command("user", what, *relevant)
    sub.add_argument("what", choices=("show",), help="show: what the database and the nodes know; no message is read")
    sub.add_argument("user", metavar="USER", help="user id")
    sub.add_argument("--json", action="store_true", help="for machines")
    sub = command("epoch", "print the log's epoch; renew it after a restore from a backup", "database_url", "data_dir")
    renew = "make a new one before the first start on restored data, so that all clients drop what they hold"
    sub.add_argument("--renew", action="store_true", help=renew)
    _add_conformance(command)
    return parser


def _add_conformance(command: Callable[..., argparse.ArgumentParser]) -> None:
    relevant = "keys_file", "data_dir", "jwt_audience", "jwt_issuer"
    sub = command("conformance", "try whether a server or a client keeps the protocol chatd.v1", *relevant)
    sub.epilog = CONFORMANCE_EPILOG + str(sub.epilog)
    sub.formatter_class = argparse.RawDescriptionHelpFormatter
    sub.add_argument("url", nargs="?", metavar="URL", help="the WebSocket of a server that is there")
    sub.add_argument("--launch", metavar="CMD", help="start the server by CMD, once for each set of settings")
    sub.add_argument("--client", metavar="CMD", help="try a client: CMD speaks the line protocol on stdin and stdout")
    sub.add_argument("--secret", metavar="TEXT", help="sign tokens with this shared secret (HS256)")
    sub.add_argument("--token-command", metavar="CMD", help="CMD prints a token; {user} and {ttl_s} are filled in")
    sub.add_argument(
        "--setting", action="append", default=[], metavar="NAME=VALUE", help="the server at URL runs with this setting"
    )
    sub.add_argument("--only", action="append", default=[], metavar="TEXT", help="run cases with TEXT in their title")
    sub.add_argument("--list", action="store_true", help="list the cases and what each needs, and run none")
    sub.add_argument("--json", dest="json_file", type=Path, metavar="FILE", help="write the report as JSON")
    sub.add_argument("--junit", type=Path, metavar="FILE", help="write the report as JUnit XML")
    sub.add_argument("--wait-s", type=float, default=10.0, metavar="S", help="for what must arrive (default: 10)")
    sub.add_argument("--seed", metavar="S", help="of the walks; the same seed does the same (default: a new one)")
    sub.add_argument("--walks", type=int, default=5, metavar="N", help="random walks (default: 5)")
    sub.add_argument("--steps", type=int, default=60, metavar="N", help="steps of each walk (default: 60)")
    sub.add_argument("--jobs", type=int, default=4, metavar="N", help="cases of a client at a time (default: 4)")


def _add_chat(command: Callable[..., argparse.ArgumentParser]) -> None:
    what = "chat in the terminal; without one, send the lines of standard input"
    sub = command("chat", what, "host", "port", "keys_file", "data_dir")
    sub.add_argument("user", metavar="USER", help="who you are: a user id")
    sub.add_argument("peer", metavar="PEER", nargs="?", help="whom to write to first (default: choose on the screen)")
    sub.add_argument("--url", metavar="URL", help="the server's WebSocket (default: that of host and port)")
    sub.add_argument("--lines", action="store_true", help="no screen: each line of standard input goes to PEER")
    sub.epilog = f"{CHAT_EPILOG}\n{sub.epilog}"
    sub.formatter_class = argparse.RawDescriptionHelpFormatter


def _add_keys(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("keys", "make a key for the keys file, or list its keys", "keys_file")
    sub.add_argument(
        "what",
        choices=("new", "list"),
        help="new: add a key, or make the file; list: show the keys, without their secrets",
    )
    sub.add_argument(
        "--alg", choices=("HS256", "EdDSA", "RS256"), default="HS256", help="of the new key (default: HS256)"
    )
    sub.add_argument("--kid", metavar="KID", help="name of the new key (default: the day)")
    sub.add_argument(
        "--group", metavar="GROUP", help="who may read a file that is made, besides its owner (default: nobody)"
    )


def _ttl_s(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) <= TOKEN_TTL_S_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is wrong, give an integer from 1 to {TOKEN_TTL_S_MAX}")
    return int(text)
