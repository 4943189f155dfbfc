"""The command `chatd`: parse the command line, call, print.

ops/command_line.py parses; `COMMANDS` has the functions. Exit status: 0 done, 1 failed, 2 a setting
or a flag is wrong (ops/surroundings.py).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import structlog
from pydantic import SecretStr

from chatd import __version__, config_sources, log, process_metrics
from chatd.cluster.redis import url as redis_url
from chatd.config import Settings, one_line
from chatd.errors import ChatdError, SettingError
from chatd.ops import command_line, descriptors, surroundings, worker_line
from chatd.ops.command_line import TTL_S
from chatd.ops.surroundings import FAILED
from chatd.ops.worker_line import WorkerLine

if TYPE_CHECKING:
    from chatd.conformance.tokens import TokenMaker

CONNECT_S: Final = 5  # for a tool's connection to PostgreSQL
TAIL_TTL_S: Final = 3_600  # of the tokens of `chatd tail` and `chatd chat`
# Nearly all of 100,000 live objects are in use, so the collector runs rarely (docs/performance.md)
GC_THRESHOLD: Final = (50_000, 20, 100)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""

    def command() -> int:
        options = command_line.parse(sys.argv[1:] if argv is None else argv)
        return COMMANDS[options.command](options)

    return surroundings.run(command)


def _settings(options: argparse.Namespace, *, database: bool = False, keys: bool = False) -> Settings:
    """Load the settings and set up the log.

    `database`, `keys`: what the command uses, for which it may need data_dir. Raises SettingError.
    """
    settings = config_sources.load(vars(options), options.config_file)
    log.setup(settings.log_level, settings.log_format, node=settings.node_name)
    for warning in settings._warnings:
        structlog.get_logger("settings").warning("setting.passed_over", reason=warning)
    if settings.redis_url is not None:
        redis_url.read(settings.redis_url.get_secret_value())
    if settings.database_url is not None:
        from chatd.postgres import url

        url.check(settings.database_url.get_secret_value())
        if settings.database_replica_url is not None:
            url.check(settings.database_replica_url.get_secret_value(), "database_replica_url")
    if settings.homeless and ((database and settings.embedded) or (keys and settings.development)):
        raise SettingError(
            "data_dir: no home folder is known to put it in (HOME is not set, and this user has no entry in passwd);"
            " give --data-dir, or --database-url and --keys-file"
        )
    descriptors.raise_limit()
    if database and settings.embedded:
        descriptors.check_tool()
    return settings


def _of_running(settings: Settings) -> Settings:
    """For a tool: with the Valkey of the workers that run here, if these settings name no Redis."""
    from chatd.cluster.redis import embedded

    if settings.redis_url is None and settings.embedded and (url := embedded.running(settings.data_dir)) is not None:
        return settings.model_copy(update={"redis_url": SecretStr(url)})
    return settings


def _serve(options: argparse.Namespace) -> int:
    settings = _settings(options, database=True, keys=True)
    if settings.workers > 1:
        return asyncio.run(_supervise(settings))
    from chatd.server import Node

    settings, few = descriptors.fitted(settings)

    async def life() -> None:
        line = worker_line.descriptor()
        node = Node(settings, process_metrics.age_s(), None if line is None else WorkerLine(line, _orphaned))
        node.on_ready = lambda: _announce(node.port, settings, few)
        await node.run()

    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    try:
        import uvloop
    except ImportError:  # on systems without it (Windows); slower, otherwise the same
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
    """This worker's supervisor has ended, so nothing would restart or stop it: drain."""
    structlog.get_logger("workers").warning("supervisor.gone", msg="draining")
    os.kill(os.getpid(), signal.SIGTERM)


def _announce(port: int, settings: Settings, few: str | None) -> None:
    """Show what the operator must know once the node serves."""
    if few is not None:
        server = structlog.get_logger("server")
        (server.info if settings.development else server.warning)("descriptors.few", reason=few)
    if settings.development and worker_line.descriptor() is None:
        _invite(port, settings)


def _invite(port: int, settings: Settings) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    what = f"open http://{host}:{port}/ in two tabs" if settings.page != "off" else f"connect to ws://{host}:{port}/ws"
    with contextlib.suppress(OSError):  # a node serves although its output is closed
        print(f"chatd {__version__} is ready: {what}, and stop it by Ctrl-C", flush=True)


def _config(options: argparse.Namespace) -> int:
    for name, value, origin in config_sources.effective(_settings(options)):
        print(f"{name} = {value or '(unset)'}    # {origin}")
    return 0


@contextlib.contextmanager
def _database(settings: Settings, *, make: bool = False) -> Iterator[str]:
    """The conninfo of the database: the configured one, or the embedded one.

    If no chatd runs the embedded one, it is started for this command.
    """
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    from chatd.postgres.embedded import visit

    with visit(settings.data_dir, make=make) as conninfo:
        yield conninfo


def _no_pooler_by_transaction(conninfo: str) -> None:
    """Raise SettingError for a pooler in transaction mode.

    There the lock of migrations would stay with some session of the pooler. Other faults are
    ignored here: the command itself reports them.
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
            f"--ttl-s: {ttl_s} is over token_ttl_max_s, so a server of these settings refuses the token; "
            f"give {most_s} or less"
        )
    print(_issue(settings, options.user, ttl_s or TTL_S))
    return 0


def _issue(settings: Settings, name: str, ttl_s: int) -> str:
    """A token that a server with these settings accepts, for `ttl_s` or `token_ttl_max_s`."""
    from chatd.chat.auth import KeySet, issue
    from chatd.ids import user_id

    try:
        user = user_id(name)
    except ValueError as e:
        raise SettingError(f"USER: {name!r} is no user id: {e}") from None
    keys = KeySet.development(settings.data_dir) if settings.keys_file is None else KeySet.load(settings.keys_file)
    return issue(keys, user, settings.token_ttl_s(ttl_s), time.time(), settings.jwt_audience, settings.jwt_issuer)


def _keys(options: argparse.Namespace) -> int:
    from chatd.chat.auth import KeySet
    from chatd.ops import keys_file

    path = _settings(options).keys_file
    if path is None:
        raise SettingError("keys_file: is not set; give --keys-file FILE, or a --config file that has it")
    if options.what == "list":
        print(keys_file.table(KeySet.load(path)))
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
    url, token = _as_user(options)
    from chatd.client.tail import tail

    surroundings.say(f"{options.user} at {url}: messages show as they arrive; Ctrl-C ends it")
    with _ended_by_the_server(url):
        asyncio.run(tail(url, token, out=sys.stdout, err=sys.stderr))
    return 0


def _chat(options: argparse.Namespace) -> int:
    url, token = _as_user(options)
    from chatd.ids import user_id
    from chatd.tui import run

    is_screen = run.is_terminal() and not options.lines
    if options.peer is None and not is_screen:
        raise SettingError("PEER: without a terminal, or with --lines, say to whom: chatd chat USER PEER")
    if options.peer is not None:
        try:
            user_id(options.peer)
        except ValueError as e:
            raise SettingError(f"PEER: {one_line(options.peer)!r} is no user id: {e}") from None
    if is_screen:
        return run.on_screen(url, token, options.peer)
    with _ended_by_the_server(url):
        return run.by_lines(url, token, options.peer)


def _as_user(options: argparse.Namespace) -> tuple[str, Callable[[bool], str]]:
    """The address of the server, and what makes tokens for `options.user`."""
    settings = _settings(options, keys=True)
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    url = options.url or f"ws://{f'[{host}]' if ':' in host else host}:{settings.port}/ws"
    _check_websocket(url)
    _issue(settings, options.user, 1)  # raises for a wrong name before connecting
    return url, lambda _renew: _issue(settings, options.user, TAIL_TTL_S)


@contextlib.contextmanager
def _ended_by_the_server(url: str) -> Iterator[None]:
    from chatd.client.errors import ClientError

    try:
        yield
    except ClientError as e:
        raise ChatdError(
            f"{url} ended it: {e}; is the server there, and does it use the same keys (--data-dir, --keys-file)?"
        ) from None


def _check_websocket(url: str) -> None:
    from websockets.exceptions import InvalidURI
    from websockets.uri import parse_uri

    try:
        parse_uri(url)
    except (InvalidURI, ValueError):
        raise SettingError(
            f"--url: {one_line(url)} is no address of a WebSocket; give ws://host:port/ws or wss://host/ws"
        ) from None


def _doctor(options: argparse.Namespace) -> int:
    from chatd.ops import doctor

    settings = _of_running(_settings(options, database=True, keys=True))
    findings = doctor.examine(settings)
    for finding in findings:
        print(finding)
    return FAILED if any(finding.bad for finding in findings) else 0


def _nodes(options: argparse.Namespace) -> int:
    from chatd.ops import nodes

    rows = asyncio.run(nodes.read(_of_running(_settings(options))))
    print(nodes.as_json(rows) if options.json else nodes.table(rows))
    return 0


def _user(options: argparse.Namespace) -> int:
    from chatd.ids import user_id
    from chatd.ops import user_report
    from chatd.postgres.embedded import Embedded

    settings = _of_running(_settings(options))
    try:
        user = user_id(options.user)
    except ValueError as e:
        raise SettingError(f"USER: {options.user!r} is no user id: {e}") from None
    if settings.embedded and not Embedded(settings.data_dir).made:
        raise SettingError(
            f"data_dir: no chatd has made a database in {settings.data_dir} yet; "
            "give another --data-dir, or --database-url"
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


def _conformance(options: argparse.Namespace) -> int:
    from chatd.conformance import command
    from chatd.conformance.against_rules import Walks
    from chatd.conformance.launch import as_settings

    settings = _settings(options, keys=True)
    if sum(given is not None for given in (options.url, options.launch, options.client)) > 1:
        raise SettingError("URL: give one of URL, --launch and --client")
    if options.url is not None:
        _check_websocket(options.url)
    chosen = command.Options(
        _token_maker(options, settings),
        url=options.url,
        launch=options.launch,
        client=options.client,
        settings=as_settings(options.setting),
        only=tuple(options.only),
        json=options.json_file,
        junit=options.junit,
        wait_s=options.wait_s,
        jobs=max(1, options.jobs),
        walks=Walks(options.seed or str(secrets.randbelow(10**6)), max(0, options.walks), max(1, options.steps)),
    )
    if options.list:
        for title, needs in command.titles(chosen):
            print(f"{title}    # needs {needs}" if needs else title)
        return 0
    return command.run(chosen, sys.stdout)


def _token_maker(options: argparse.Namespace, settings: Settings) -> TokenMaker:
    """By `--secret`, by `--token-command`, or by the keys that `chatd token` signs with."""
    from chatd.chat.auth import KeySet, issue
    from chatd.conformance import tokens
    from chatd.ids import UserId

    if options.secret is not None and options.token_command is not None:
        raise SettingError("--secret: give it or --token-command, not both")
    if options.secret is not None:
        return tokens.by_secret(options.secret)
    if options.token_command is not None:
        return tokens.by_command(options.token_command)

    def sign(user: str, ttl_s: int) -> str:
        keys = KeySet.development(settings.data_dir) if settings.keys_file is None else KeySet.load(settings.keys_file)
        return issue(keys, UserId(user), ttl_s, time.time(), settings.jwt_audience, settings.jwt_issuer)

    return tokens.TokenMaker(sign)


COMMANDS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "serve": _serve, "config": _config, "migrate": _migrate, "token": _token, "keys": _keys, "tail": _tail,
    "chat": _chat, "doctor": _doctor, "nodes": _nodes, "user": _user, "epoch": _epoch,
    "conformance": _conformance,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
