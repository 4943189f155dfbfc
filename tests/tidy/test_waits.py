"""How tests wait: for events, and where there is none by `until`. A sleep needs a reason, and no
test fails because the machine is slow: times are measured in bench/.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parents[1]
FILES: Final = [path for path in sorted(TESTS.rglob("*.py")) if path.name != Path(__file__).name]

# By file: how many sleeps there are, and why no event can be awaited instead. `sleep(0)`, one turn
# of the loop, is not counted.
SLEEPS: Final = {
    "until.py": (3, "the loop itself"),
    "stranger.py": (1, "the pauses of docs/protocol.md, section 8; it knows nothing of the tests"),
    "faults/client.py": (1, "a device's pause between two dials, drawn from the seed"),
    "faults/crowd.py": (1, "people write at times drawn from the seed"),
    "faults/replica_readers.py": (1, "people do things at times drawn from the seed"),
    "faults/test_bounds.py": (1, "a slow client: a byte now and then"),
    "faults/test_failover.py": (2, "how long a standby lags, by the seed; what was answered has to arrive"),
    "faults/test_kills.py": (1, "a kill between any two commits, by the seed"),
    "faults/test_outage.py": (1, "how long an outage lasts"),
    "faults/test_replica.py": (3, "how long replay stops, and goes on, by the seed; how often a quiet log is read"),
    "chaos/device.py": (1, "a device's pause between two dials, by the seed"),
    "chaos/injector.py": (3, "what is injected: a call that takes longer, or hangs"),
    "chaos/servers.py": (7, "how long a fault lasts, by the seed"),
    "chaos/world.py": (3, "people act, and faults begin, at times drawn from the seed"),
    "cluster/test_kills.py": (5, "people write, and servers stay away, for times drawn from the seed"),
    "cluster/test_limits.py": (2, "a refused client waits as told; that nobody drops a partition has no event"),
    "cluster/test_presence_sync.py": (1, "that nothing is written meanwhile has no event"),
    "cluster/test_shared_limits.py": (4, "by Redis' clock: a refused caller waits as told, or for a time of the seed"),
    "cluster/test_read_only.py": (2, "how long an outage lasts, and a newcomer's pause"),
    "cluster/test_redis_faults.py": (2, "how long a fault lasts, and a lease after it"),
    "cluster/traffic.py": (1, "a client waits as the notice of a drain tells"),
    "js/crowd.py": (1, "what breaks stays so for times drawn from the seed"),
    "js/kills.py": (2, "somebody writes, and the server is killed, at times drawn from the seed"),
    "integration/test_client_kills.py": (2, "people write, and a bot is killed, at times drawn from the seed"),
    "integration/test_client.py": (3, "a line is cut, and people write, at times drawn from the seed"),
    "integration/test_readiness.py": (1, "the end of a connection that nobody reads has no event"),
    "integration/test_workers.py": (1, "a supervisor that is held up: the sleep blocks its loop"),
    "install/inside/probe.py": (1, "it runs within the machine, where there are no tests"),
    "install/machine.py": (2, "a machine that boots, and groups of processes that end"),
    "install/terminal.py": (1, "who asks for a password first drops what was typed before"),
}  # fmt: skip

CLOCKS: Final = {"monotonic", "perf_counter", "time", "monotonic_ns", "perf_counter_ns"}
LESS: Final = (ast.Lt, ast.LtE)


def _sleeps(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("asyncio.sleep", "time.sleep", "sleep"):
            continue
        if ast.unparse(node.args[0]) != "0":
            yield node.lineno


def _reads_clock(node: ast.AST) -> bool:
    return any(
        isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute) and one.func.attr in CLOCKS and not one.args
        for one in ast.walk(node)
    )


def _is_duration(node: ast.AST, durations: set[str]) -> bool:
    """Now less then, or a name that holds such a difference; not what it is subtracted from."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        return _reads_clock(node.left) or _is_duration(node.left, durations)
    if isinstance(node, ast.Name):
        return node.id in durations
    return any(_is_duration(one, durations) for one in ast.iter_child_nodes(node))


def _names(target: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(target) if isinstance(one, ast.Name)}


def _bounds(tree: ast.AST) -> Iterator[int]:
    """Lines that assert that a measured time is below something."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _bounds_of(function)


def _bounds_of(function: ast.AST) -> Iterator[int]:
    durations = set[str]()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and _is_duration(node.value, durations):
            durations |= set().union(*map(_names, node.targets))
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append"
            and _is_duration(node.args[0], durations)
        ):  # fmt: skip
            durations |= _names(node.func.value)
    for node in ast.walk(function):
        if not isinstance(node, ast.Assert):
            continue
        for compare in (one for one in ast.walk(node.test) if isinstance(one, ast.Compare)):
            sides = [compare.left, *compare.comparators]
            for op, less, more in zip(compare.ops, sides, sides[1:], strict=False):
                small = less if isinstance(op, LESS) else more
                is_age = ast.unparse(small).startswith("abs(")  # of a time stamp: no duration of the test
                if isinstance(op, (*LESS, ast.Gt, ast.GtE)) and not is_age and _is_duration(small, durations):
                    yield node.lineno


def _found(lines: Callable[[ast.AST], Iterator[int]], words: Iterable[str]) -> dict[str, list[int]]:
    """By file; only those that have one of the words are read as code."""
    texts = {str(path.relative_to(TESTS)): path.read_text() for path in FILES}
    found = {
        name: sorted(set(lines(ast.parse(text))))
        for name, text in texts.items()
        if any(f"{word}(" in text for word in words)
    }
    return {name: lines for name, lines in found.items() if lines}


def test_no_sleep_is_without_a_reason() -> None:
    found = _found(_sleeps, ("sleep",))
    counts = {name: len(lines) for name, lines in found.items()}
    allowed = {name: count for name, (count, _) in SLEEPS.items()}
    assert counts == allowed, {name: found.get(name) for name, _ in counts.items() ^ allowed.items()}


def test_no_test_fails_because_a_machine_is_slow() -> None:
    """A time is printed, or measured in bench/; a bound that ends a test that hangs is another
    thing.
    """
    assert _found(_bounds, CLOCKS) == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("assert time.monotonic() - began < 2", True),
        ("took = loop.time() - began\n    assert took <= 2", True),
        ("took.append(time.monotonic() - began)\n    assert max(took) < 2", True),
        ("took = time.monotonic() - began\n    assert 2 > took", True),
        ("took = time.monotonic() - began\n    assert took > 2", False),
        ("took = time.monotonic() - began\n    assert a - took < b", False),
        ("assert abs(ts - time.time()) < 2", False),
        ("assert penalty.until > time.monotonic() + 50", False),
    ],
)
def test_a_bound_is_found(source: str, found: bool) -> None:
    assert bool(list(_bounds(ast.parse(f"def f():\n    {source}\n")))) is found
