"""`python -m bench SCENARIO`: find the scenario's file, parse its flags, run it."""

from __future__ import annotations

import argparse
import gc
import importlib
import pkgutil
import resource
import sys

import uvloop

from bench import report, scenarios, target


def main() -> int:
    """Gives the exit status: see `report`."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure chatd. docs/performance.md says what the figures mean.")
    commands = parser.add_subparsers(metavar="SCENARIO", required=True, dest="scenario")
    for found in pkgutil.iter_modules(scenarios.__path__):
        module = importlib.import_module(f"bench.scenarios.{found.name}")
        text = (module.__doc__ or "").splitlines()[0]
        sub = commands.add_parser(found.name, help=text, description=text)
        target.flags(sub)
        report.flags(sub)
        module.flags(sub)
        sub.set_defaults(run=module.run)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # each user is a descriptor here and one in the server
    gc.disable()  # a run is short, and a pause of the generator would look like one of the server
    try:
        return int(uvloop.run(options.run(options)))
    except (target.TargetError, ConnectionError) as e:
        print(f"bench: {e}", file=sys.stderr)
        return report.VOID


sys.exit(main())
