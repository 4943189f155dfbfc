"""`chatd conformance`: chooses what to run, shows each case as it ends, writes the reports.

run(Options(...), sys.stdout) ─► exit status   0: nothing failed, and something was tried
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

from chatd.conformance import vectors
from chatd.conformance.against_client import ClientTrial
from chatd.conformance.against_rules import GROUP, Walks
from chatd.conformance.against_server import ServerTrial, is_wanted
from chatd.conformance.launch import Deployed, Launched, Target
from chatd.conformance.report import Case, ConformanceReport
from chatd.conformance.server_vectors import WAIT_S
from chatd.conformance.tokens import TokenMaker
from chatd.conformance.vectors import Vector
from chatd.errors import SettingError

FAILED: Final = 1


@dataclass(frozen=True, slots=True)
class Options:
    """What to try, and how. One of `url`, `launch` and `client` is given.

    `settings`: what the server at `url` runs with, where that is not the default. `only`: parts of
    titles, or patterns. `wait_s`: for what must arrive. `jobs`: cases of a client at a time.
    `walks`: the stateful rules.
    """

    token: TokenMaker
    url: str | None = None
    launch: str | None = None
    client: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    json: Path | None = None
    junit: Path | None = None
    wait_s: float = WAIT_S
    jobs: int = 1
    walks: Walks = field(default_factory=Walks)


def titles(options: Options) -> list[tuple[str, str]]:
    """(title, what it needs) of all cases that would be tried."""
    walks = [(f"{GROUP}: {name}", "") for name in _chosen_walks(options)]
    return [(f"{one.file}: {one.name}", one.needs) for one in _chosen(options)] + walks


def _chosen(options: Options) -> list[Vector]:
    side: vectors.Side = "server" if options.client is None else "client"
    return [one for one in vectors.load(side) if is_wanted(f"{one.file}: {one.name}", options.only)]


def _chosen_walks(options: Options) -> list[str]:
    return [name for name in options.walks.names() if is_wanted(f"{GROUP}: {name}", options.only)]


def run(options: Options, out: TextIO) -> int:
    """Try it. Raises ChatdError where nothing can be tried at all."""
    if not titles(options):
        raise SettingError(f"--only: no case has {' or '.join(options.only)} in its title; see --list")
    subject = options.url or options.launch or options.client
    if subject is None:
        raise SettingError("URL: what is to be tried? Give the URL of a server, --launch CMD, or --client CMD")
    report = ConformanceReport(subject)

    def show(case: Case) -> None:
        out.write(case.line() + "\n")
        out.flush()

    asyncio.run(_try(options, report, show))
    out.write("\n" + report.summary() + "\n")
    for path, text in ((options.json, report.as_json), (options.junit, report.as_junit)):
        if path is not None:
            path.write_text(text(), encoding="utf-8")
    return 0 if report.is_good else FAILED


async def _try(options: Options, report: ConformanceReport, show: Callable[[Case], None]) -> None:
    if options.client is not None:
        client = ClientTrial(options.client, report, show, options.wait_s, options.jobs)
        await client.run(_chosen(options), options.walks, _chosen_walks(options))
        return
    trial = ServerTrial(_target(options), report, show, options.wait_s)
    await trial.run(_chosen(options))
    await trial.run_walks(options.walks, _chosen_walks(options))
    if not options.only:
        trial.end_checks()


def _target(options: Options) -> Target:
    if options.launch is not None:
        return Launched(options.launch, options.token)
    if options.url is None:
        raise SettingError("URL: what is to be tried? Give the URL of a server, --launch CMD, or --client CMD")
    return Deployed(options.url, options.token, options.settings)
