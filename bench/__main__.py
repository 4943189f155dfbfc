"""`python -m bench SCENARIO`, `bench compare A B`, `bench budget`: find the scenario's file, parse
its flags, run it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import pkgutil
import signal
import sys
from collections.abc import Coroutine
from typing import Any

try:
    from bench import budget, compare, report, scenarios, target
except ModuleNotFoundError as e:
    sys.exit(
        f"bench: no module {e.name} here: `make setup` installs what the bench needs; then run it as `.venv/bin/python"
        " -m bench`"
    )

EXAMPLES = """\
examples:
  python -m bench send                                what the budgets are held to, in 40 s
  python -m bench send --help                         all that can be varied, with examples
  python -m bench compare before.json after.json      what is better or worse than noise
  python -m bench budget --quick                      everything in some 10 minutes, against bench/budgets.toml

Each scenario starts a server of its own, measures it from other processes, stops it, and writes JSON and an HTML page
to bench/out. docs/performance.md says what the figures mean.
Exit status: 0 within budget, 1 over it or void, 2 could not be measured."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure chatd.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(metavar="SCENARIO", required=True, dest="scenario")
    for found in pkgutil.iter_modules(scenarios.__path__):
        module = importlib.import_module(f"bench.scenarios.{found.name}")
        sub = _command(commands, found.name, module)
        module.flags(sub)
        target.flags(sub, getattr(module, "LIMITS", "lifted"))
        report.flags(sub)
    for module in (compare, budget):
        module.flags(_command(commands, module.__name__.rpartition(".")[2], module))
    return top


def _command(commands: Any, name: str, module: Any) -> argparse.ArgumentParser:
    text = (module.__doc__ or "").strip()
    epilog, style = f"examples:\n{module.EXAMPLES}", argparse.RawDescriptionHelpFormatter
    sub: argparse.ArgumentParser = commands.add_parser(
        name, help=text.splitlines()[0], description=text, epilog=epilog, formatter_class=style
    )
    sub.set_defaults(run=module.run)
    return sub


async def _until_told(work: Coroutine[Any, Any, int]) -> int:
    """SIGTERM ends it as Ctrl-C does: servers are stopped."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def main() -> int:
    """Gives the exit status: see `report`."""
    options = parser().parse_args()
    try:
        work = options.run(options)
        return asyncio.run(_until_told(work)) if asyncio.iscoroutine(work) else int(work)
    except (target.TargetError, ConnectionError) as e:
        print(f"bench: {e}", file=sys.stderr)
        return report.FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        with contextlib.suppress(OSError):
            print("bench: stopped; nothing was written", file=sys.stderr)
        return report.FAILED


if __name__ == "__main__":
    sys.exit(main())
