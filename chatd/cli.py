"""The command `chatd`: parse, call, print.

Exit status: 0 done, 1 it failed, 2 a setting or a flag is wrong.

`chatd` alone is `chatd serve`. Every command takes all settings as flags, so that one line can be
edited into another; only `chatd serve --help` and `chatd config --help` list them. A TOML file is
named by `--config`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import difflib
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import structlog

from chatd import __version__, config, log, process_metrics
from chatd.cluster.redis import url as redis_url
from chatd.config import Settings
from chatd.errors import ChatdError, SettingError
from chatd.ops import descriptors, sd_notify, surroundings
from chatd.ops.surroundings import FAILED

CONNECT_S: Final = 5  # what a tool sends must have arrived by then
TTL_S: Final = 86_400  # of `chatd token`
TAIL_TTL_S: Final = 3_600
# Of 100,000 live objects nearly none are garbage: look rarely (docs/performance.md)
GC_THRESHOLD: Final = (50_000, 20, 100)

EPILOG: Final = """\
examples:
  chatd                                   try it: PostgreSQL included, a page to chat on, nothing to configure
  chatd serve --config /etc/chatd/chatd.toml    as a service (docs/operations.md)
  chatd serve --workers 4 --redis-url redis://127.0.0.1    four nodes on one port (docs/cluster.md)
  chatd nodes --redis-url redis://127.0.0.1                the nodes there are
  chatd keys new --keys-file keys.json    a key to sign tokens with
  chatd token alice                       a token for development
  chatd tail alice                        watch alice's messages as they come
  chatd user show alice                   where alice is connected, and why nothing may come through
  chatd doctor                            what would keep chatd from running well here
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; gives the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help", "--version")):
        args.insert(0, "serve")

    def command() -> int:
        options, unknown = _parser().parse_known_args(args)
        if unknown:
            raise SettingError(_unknown(unknown[0], options.parser))
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)

    return surroundings.run(command)


class _Parser(argparse.ArgumentParser):
    """A wrong flag is told in one line, as a wrong setting is; text that cannot be written is an
    error.
    """

    def error(self, message: str) -> NoReturn:
        raise SettingError(f"{config.one_line(message)}; see `{self.prog} --help`")

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file or sys.stdout)


def _unknown(word: str, parser: argparse.ArgumentParser) -> str:
    """Of a flag only what stands before the `=`: the rest may be a password."""
    flag = config.one_line(config.mask_password(word.partition("=")[0]))
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

    def command(
        name: str, run: Callable[[argparse.Namespace], int], help: str, *relevant: str
    ) -> argparse.ArgumentParser:
        """With the names of the settings that matter to it; without any, all are listed."""
        flags = " ".join(f"--{name.replace('_', '-')}" for name in relevant)
        epilog = f"all settings of `chatd serve` are taken too; what matters here: {flags}" if relevant else None
        sub = commands.add_parser(name, help=help, description=help, epilog=epilog)
        sub.set_defaults(run=run, parser=sub)
        sub.add_argument(
            "--config", dest="config_file", type=Path, metavar="FILE", help="TOML file of settings (also: CHATD_CONFIG)"
        )
        config.add_flags(sub, shown=not relevant)
        return sub

    command("serve", _serve, "run the server (also: no command at all)")
    command("config", _config, "print the settings in force and where each comes from, passwords masked")
    sub = command("migrate", _migrate, "bring the database's schema up to this release", "database_url", "data_dir")
    sub.add_argument("--post", action="store_true", help="also what takes away things only the release before needs")
    sub.add_argument("--dry-run", action="store_true", help="only print what would be applied")
    relevant = "keys_file", "data_dir", "jwt_audience", "jwt_issuer", "token_ttl_max_s"
    sub = command("token", _token, "print a token for a user, signed by the key in force", *relevant)
    sub.add_argument("user", metavar="USER", help="user id")
    sub.add_argument(
        "--ttl-s",
        type=_ttl_s,
        metavar="S",
        help=f"how long it is valid (default: {TTL_S} s, or token_ttl_max_s if that is less)",
    )
    _add_keys(command)
    sub = command("tail", _tail, "show a user's messages as they come", "host", "port", "keys_file", "data_dir")
    sub.add_argument("user", metavar="USER", help="user id")
    sub.add_argument("--url", metavar="URL", help="the server's WebSocket (default: that of host and port)")
    command(
        "doctor",
        _doctor,
        "check database, Redis, clock and limits, and say what to do",
        "database_url",
        "redis_url",
        "keys_file",
        "data_dir",
    )
    sub = command(
        "nodes",
        _nodes,
        "list the nodes: sessions, versions, how old their leases are",
        "redis_url",
        "redis_prefix",
        "lease_ms",
    )
    sub.add_argument("--json", action="store_true", help="for machines")
    asked = "database_url", "data_dir", "redis_url", "redis_prefix", "admin_host", "admin_port"
    sub = command("user", _user, "show a user's sessions, cursors and queues, and why nothing may come through", *asked)
    sub.add_argument("what", choices=("show",), help="show: what the database and the nodes know; no message is read")
    sub.add_argument("user", metavar="USER", help="user id")
    sub.add_argument("--json", action="store_true", help="for machines")
    sub = command(
        "epoch", _epoch, "print the log's epoch; renew it after a restore from a backup", "database_url", "data_dir"
    )
    renew = "make a new one, so that all clients drop what they hold: before the first start on restored data"
    sub.add_argument("--renew", action="store_true", help=renew)
    return parser


def _add_keys(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("keys", _keys, "make a key for the keys file, or list those that it has", "keys_file")
    sub.add_argument(
        "what",
        choices=("new", "list"),
        help="new: add a key, or make the file; list: which there are, without their secrets",
    )
    sub.add_argument(
        "--alg", choices=("HS256", "EdDSA", "RS256"), default="HS256", help="of the new key (default: HS256)"
    )
    sub.add_argument("--kid", metavar="KID", help="name of the new key (default: the day)")
    sub.add_argument(
        "--group", metavar="GROUP", help="who may read a file that is made, besides its owner (default: nobody)"
    )


def _ttl_s(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) <= config.TOKEN_TTL_S_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is wrong, give an integer from 1 to {config.TOKEN_TTL_S_MAX}")
    return int(text)


def _settings(options: argparse.Namespace, *, database: bool = False, keys: bool = False) -> Settings:
    """The settings, and the log set up by them.

    `database`, `keys`: what the command uses, and what it may so need data_dir for.
    """
    settings = config.load(vars(options), options.config_file)
    log.setup(settings.log_level, settings.log_format, node=settings.node_name)
    for warning in settings._warnings:
        structlog.get_logger("settings").warning("setting.passed_over", reason=warning)
    if settings.redis_url is not None:
        redis_url.read(settings.redis_url.get_secret_value())
    if settings.database_url is not None:
        from chatd.postgres import url

        url.check(settings.database_url.get_secret_value())
    if settings.homeless and ((database and settings.embedded) or (keys and settings.development)):
        raise SettingError(
            "data_dir: no home folder is known to put it in (HOME is not set, and this user has no entry in passwd);"
            " give --data-dir, or --database-url and --keys-file"
        )
    descriptors.raise_limit()
    if database and settings.embedded:
        descriptors.check_tool()
    return settings


def _serve(options: argparse.Namespace) -> int:
    settings = _settings(options, database=True, keys=True)
    if settings.workers > 1:
        return asyncio.run(_supervise(settings))
    from chatd.server import Node

    settings, few = descriptors.fitted(settings)

    async def life() -> None:
        sd_notify.on_orphaned(_orphaned)
        node = Node(settings, process_metrics.age_s())
        node.on_ready = lambda: _tell(node.port, settings, few)
        await node.run()

    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    try:
        import uvloop
    except ImportError:  # where it does not exist (Windows); slower, and otherwise the same
        asyncio.run(life())
    else:
        uvloop.run(life())
    return 0


async def _supervise(settings: Settings) -> int:
    from chatd.ops.supervisor import Supervisor

    supervisor = Supervisor(settings)
    if settings.development:
        supervisor.on_ready = lambda: _invite(supervisor.port, settings)
    return await supervisor.run()


def _orphaned() -> None:
    """This worker's supervisor is gone: nobody would restart it, or stop it."""
    structlog.get_logger("workers").warning("supervisor.gone", msg="draining")
    os.kill(os.getpid(), signal.SIGTERM)


def _tell(port: int, settings: Settings, few: str | None) -> None:
    """What who started this node is to know, now that it serves."""
    if few is not None:
        server = structlog.get_logger("server")
        (server.info if settings.development else server.warning)("descriptors.few", reason=few)
    if settings.development and not sd_notify.is_worker():
        _invite(port, settings)


def _invite(port: int, settings: Settings) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    with contextlib.suppress(OSError):  # a node is not for its output
        print(
            f"chatd {__version__} is ready: open http://{host}:{port}/ in two tabs, and stop it by Ctrl-C", flush=True
        )


def _config(options: argparse.Namespace) -> int:
    for name, value, origin in config.effective(_settings(options)):
        print(f"{name} = {value or '(unset)'}    # {origin}")
    return 0


@contextlib.contextmanager
def _database(settings: Settings, *, make: bool = False) -> Iterator[str]:
    """For a command that needs the database: the configured one, or the embedded one, of a running
    chatd or started for this.
    """
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    from chatd.postgres.embedded import visit

    with visit(settings.data_dir, make=make) as conninfo:
        yield conninfo


def _no_pooler_by_transaction(conninfo: str) -> None:
    """Through it the lock of migrations would stay with some session of the pooler.

    Raises SettingError; who meets another fault tells it.
    """
    from chatd.postgres.connection import Opener
    from chatd.postgres.faults import Outage

    try:
        asyncio.run(Opener(conninfo).try_out("migrate", CONNECT_S))
    except Outage as e:
        if e.kind == "pooler":
            raise SettingError(f"database_url: {e}") from e


def _migrate(options: argparse.Namespace) -> int:
    from chatd.postgres import migrate

    with _database(_settings(options, database=True), make=not options.dry_run) as conninfo:
        _no_pooler_by_transaction(conninfo)
        names = migrate.pending(conninfo) if options.dry_run else migrate.migrate(conninfo, post=options.post)
    for name in names:
        print(f"{'would apply' if options.dry_run else 'applied'} {name}")
    if not names:
        print("nothing to do")
    return 0


def _token(options: argparse.Namespace) -> int:
    settings = _settings(options, keys=True)
    ttl_s, most_s = options.ttl_s, settings.token_ttl_max_s
    if ttl_s is not None and most_s and ttl_s > most_s:
        raise SettingError(
            f"--ttl-s: {ttl_s} is over token_ttl_max_s, so a server of these settings refuses the token; give {most_s} or less"
        )
    print(_issue(settings, options.user, ttl_s or TTL_S))
    return 0


def _issue(settings: Settings, name: str, ttl_s: int) -> str:
    """A token that a server of these settings takes, for `ttl_s` or as long as it may be."""
    from chatd.chat.auth import Keys, issue
    from chatd.ids import user_id

    try:
        user = user_id(name)
    except ValueError as e:
        raise SettingError(f"USER: {name!r} is no user id: {e}") from None
    keys = Keys.development(settings.data_dir) if settings.keys_file is None else Keys.load(settings.keys_file)
    return issue(keys, user, settings.token_ttl_s(ttl_s), time.time(), settings.jwt_audience, settings.jwt_issuer)


def _keys(options: argparse.Namespace) -> int:
    from chatd.chat.auth import Keys
    from chatd.ops import keys_file

    path = _settings(options).keys_file
    if path is None:
        raise SettingError("keys_file: is not set; give --keys-file FILE, or a --config file that has it")
    if options.what == "list":
        print(keys_file.table(Keys.load(path)))
        return 0
    is_there = path.exists()
    kid = keys_file.add(path, options.alg, options.kid, options.group)
    print(kid, flush=True)
    then = (
        "reload the nodes (SIGHUP) before you sign with it"
        if is_there
        else "what issues your users' tokens signs with it"
    )
    surroundings.say(f"{'added to' if is_there else 'made'} {path}; {then}")
    return 0


def _tail(options: argparse.Namespace) -> int:
    settings = _settings(options, keys=True)
    from chatd.client.errors import ClientError
    from chatd.client.tail import tail

    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    url = options.url or f"ws://{f'[{host}]' if ':' in host else host}:{settings.port}/ws"
    _check_websocket(url)
    _issue(settings, options.user, 1)  # a wrong name is told now
    surroundings.say(f"{options.user} at {url}: messages show as they come; Ctrl-C ends it")
    try:
        asyncio.run(
            tail(url, lambda _renew: _issue(settings, options.user, TAIL_TTL_S), out=sys.stdout, err=sys.stderr)
        )
    except ClientError as e:
        raise ChatdError(
            f"{url} ended it: {e}; is the server there, and does it use the same keys (--data-dir, --keys-file)?"
        ) from None
    return 0


def _check_websocket(url: str) -> None:
    from websockets.exceptions import InvalidURI
    from websockets.uri import parse_uri

    try:
        parse_uri(url)
    except (InvalidURI, ValueError):
        raise SettingError(
            f"--url: {config.one_line(url)} is no address of a WebSocket; give ws://host:port/ws or wss://host/ws"
        ) from None


def _doctor(options: argparse.Namespace) -> int:
    from chatd.ops import doctor

    settings = _settings(options, database=True, keys=True)
    findings = doctor.examine(settings)
    for finding in findings:
        print(finding)
    return FAILED if any(finding.bad for finding in findings) else 0


def _nodes(options: argparse.Namespace) -> int:
    from chatd.ops import nodes

    rows = asyncio.run(nodes.read(_settings(options)))
    print(nodes.as_json(rows) if options.json else nodes.table(rows))
    return 0


def _user(options: argparse.Namespace) -> int:
    from chatd.ids import user_id
    from chatd.ops import user_report
    from chatd.postgres.embedded import Embedded

    settings = _settings(options)
    try:
        user = user_id(options.user)
    except ValueError as e:
        raise SettingError(f"USER: {options.user!r} is no user id: {e}") from None
    if settings.embedded and not Embedded(settings.data_dir).made:
        raise SettingError(
            f"data_dir: no chatd has made a database in {settings.data_dir} yet; give another --data-dir, or --database-url"
        )
    with _database(settings) as conninfo:
        report = user_report.read(settings, conninfo, user)
    print(user_report.as_json(report) if options.json else user_report.text(report))
    return 0


def _epoch(options: argparse.Namespace) -> int:
    from chatd.postgres import epoch
    from chatd.postgres.embedded import Embedded

    settings = _settings(options, database=True)
    if settings.embedded and not Embedded(settings.data_dir).made:
        raise SettingError(
            f"data_dir: no chatd has made a database in {settings.data_dir} yet; "
            "give another --data-dir, or --database-url"
        )
    with _database(settings) as conninfo:
        print(epoch.read(conninfo, CONNECT_S, renew=options.renew))
    if options.renew:
        surroundings.say("running nodes notice within a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
