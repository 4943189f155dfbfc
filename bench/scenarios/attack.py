"""Attacks at full speed, one kind after the other, beside honest users: what these feel, what the
attacker is told, and what it costs the node.

Honest users, in a process of their own, ask `ping` and send to each other at a steady pace, and
newcomers connect; an attacker, in another process, does one kind of attack on `--connections`
connections and makes each again at once when it ends. Limits are the default ones. What the honest
feel is told by `bench.beside`; `rss_after_mib` is the nodes' memory after a kind. With `--workers
N` there are N nodes on one port (and a Redis); `workers_died` counts those that ended or were found
silent.

The bounds are for one connection; with more only what must hold for any number is judged: nothing
lost, no worker dead, the right codes. The generator needs a core of its own: on two cores its work
is in the figures. `load_1m` stands beside each kind.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any, Final

from bench import beside, old_logs, report
from bench.attacks.kinds import BY_NAME, KINDS, NO_CODE, Kind
from bench.gang import Gang, Generator, soon
from bench.old_logs import Old
from bench.report import say
from bench.target import Target, TargetError

EXAMPLES = """\
  python -m bench attack                                     each kind from one connection; some 6 minutes
  python -m bench attack --kind pongs,reads                  these alone
  python -m bench attack --connections 100 --workers 2       two workers under a hundred
  python -m bench attack --kind help                         what the kinds are"""
LIMITS = "default"
PAGE: Final = 100  # messages of 2 KB in the attacker's long conversation: the largest page there is
EDITS: Final = 1_000  # that its other one has already
LATE: Final = frozenset({4003, 4007, NO_CODE})  # no hello in time, no pong, cut before it read its close
SETTLE_S: Final = 1.0  # after a kind, before memory is read


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kind",
        default="",
        metavar="NAME,...",
        help="these alone, and `none` before them; `help` lists all (default: all)",
    )
    parser.add_argument(
        "--connections", type=int, default=1, metavar="N", help="of the attacker; a kind may need more (default: 1)"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="nodes on one port (default: 1)")
    parser.add_argument(
        "--seconds", type=float, default=6, metavar="S", help="of each kind; one may need more (default: 6)"
    )
    parser.add_argument(
        "--settle-s", type=float, default=SETTLE_S, metavar="S", help="waited before memory is read (default: 1)"
    )
    parser.add_argument(
        "--budget-ping-p99-ms",
        type=float,
        default=100,
        metavar="MS",
        help="of any kind, with one connection (default: 100)",
    )
    parser.add_argument(
        "--budget-send-p99-ms",
        type=float,
        default=250,
        metavar="MS",
        help="of any kind, with one connection (default: 250)",
    )
    parser.add_argument(
        "--budget-rss-mib",
        type=float,
        default=64,
        metavar="MIB",
        help="more that a node holds in the end (default: 64)",
    )


async def run(options: argparse.Namespace) -> int:
    if options.kind == "help":
        print(report.columns([(kind.name, kind.what) for kind in KINDS], left=(0, 1)))
        return report.WITHIN
    kinds = _chosen(options.kind)
    settings = {"workers": options.workers} if options.workers > 1 else {}
    async with (
        Target(options, redis=options.workers > 1, admin=True, settings=settings) as target,
        Gang(target, options.seed) as gang,
    ):
        target.need_own("attack: what a node holds")
        attackers = await asyncio.to_thread(_fill, target, max(1, options.connections), options.seed)
        people = await beside.start(gang)
        attacker = await gang.add("attacks", users=attackers, peers=list(beside.USERS), admin_port=target.admin_port)
        found = [await _one(options, target, people, attacker, kind) for kind in kinds]
        figures = _figures(options, target, found) | report.context(options, target)
    print(_table(found))
    return report.finish(options, figures, _bounds(options))


def _chosen(text: str) -> list[Kind]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in BY_NAME]:
        raise TargetError(f"--kind: no attack is called {', '.join(unknown)}; --kind help lists them")
    return [kind for kind in KINDS if not names or kind.name in (*names, "none")]


def _fill(target: Target, n: int, seed: int) -> list[list[str]]:
    """Attackers as [name, long conversation, conversation with an edited message]; each has an open
    one with every honest user.
    """
    names = [f"mallory{i}" for i in range(n)]
    long = [Old(name, "accomplice", PAGE, 2_000) for name in names]
    edited = [Old(name, "partner", 2, 2_000, EDITS) for name in names]
    ids = old_logs.write(
        target.conninfo, [*long, *edited, *(Old(name, user, 2) for name in names for user in beside.USERS)], seed
    )
    return [[name, ids[i], ids[n + i]] for i, name in enumerate(names)]


async def _one(
    options: argparse.Namespace, target: Target, people: Generator, attacker: Generator, kind: Kind
) -> dict[str, Any]:
    """One kind; gives its figures."""
    seconds = max(options.seconds, kind.seconds)
    say(f"measured: {kind.name} ({kind.what}), {seconds:g} s")
    at = soon()
    felt, seen = await asyncio.gather(
        beside.feel(target, people, seconds, at),
        attacker.do("fire", kind=kind.name, connections=options.connections, seconds=seconds, at=at),
    )  # fmt: skip
    await asyncio.sleep(options.settle_s)
    closes = {int(code): n for code, n in seen["closes"].items()}
    return {
        "kind": kind.name,
        "seconds": seconds,
        **felt,
        **_renamed(seen),
        "wrong_closes": _wrong(kind, closes, options.connections),
        "rss_after_mib": beside.rss_mib(target),
    }


def _renamed(seen: dict[str, Any]) -> dict[str, Any]:
    """What the attacker saw; its errors are not those of the honest."""
    return {name if name != "errors" else "attacker_errors": value for name, value in seen.items()}


def _wrong(kind: Kind, closes: dict[int, int], connections: int = 1) -> int:
    """Closes with a code that is not right for that kind; one more if it had to be closed, and was
    not. An attacker with many connections is late itself, and is told so.
    """
    right = kind.codes | (LATE if connections > 1 else frozenset())
    return sum(n for code, n in closes.items() if code not in right) + (kind.must_end and not closes)


# ---- figures -------------------------------------------------------------------------------------


def _figures(options: argparse.Namespace, target: Target, found: list[dict[str, Any]]) -> dict[str, Any]:
    """The worst of all kinds, and each kind's own (`windows`)."""

    def worst(name: str) -> float | None:
        values = [one[name] for one in found]
        return None if any(value is None for value in values) else max(values)

    total, last = ("unanswered", "kept_out", "wrong_closes"), found[-1]
    return {
        "connections": options.connections,
        "workers": options.workers,
        **{
            name: worst(name)
            for name in (
                "ping_p99_ms",
                "send_p99_ms",
                "delivery_p99_ms",
                "come_max_ms",
                "generator_lag_p99_ms",
                "rss_most_mib",
            )
        },
        **{name: sum(one[name] for one in found) for name in total},
        **{name: last[name] for name in beside.NEVER if name not in total},
        "errors": last["errors"],
        "dropped": last["dropped"],
        "rss_growth_mib": round(last["rss_after_mib"] - found[0]["rss_after_mib"], 1),
        "workers_died": target.logged("worker.died") + target.logged("worker.silent"),
        "windows": found,
    }


def _bounds(options: argparse.Namespace) -> dict[str, float]:
    must_not = ("lost", "duplicated", "reordered", "stray", "dropped_n", "workers_died", "wrong_closes")
    most = dict.fromkeys(must_not, 0.0) | {"rss_growth_mib": options.budget_rss_mib * options.workers}
    if options.connections == 1:
        most |= {
            "ping_p99_ms": options.budget_ping_p99_ms,
            "send_p99_ms": options.budget_send_p99_ms,
            "unanswered": 0.0,
            "kept_out": 0.0,
        }
    return most


def _table(found: list[dict[str, Any]]) -> str:
    """What a person reads."""

    def ms(value: float | None) -> str:
        return "never" if value is None else f"{value:.0f}"

    rows = [
        (
            "attack",
            "ping p50",
            "p99 ms",
            "send p50",
            "p99 ms",
            "come max",
            "RSS MiB",
            "most",
            "after",
            "node",
            "load",
            "closed, refused",
        )
    ]
    for one in found:
        told = {**one["closes"], **{f"HTTP {code}": n for code, n in one["statuses"].items()}, **one["attacker_errors"]}
        if one["refused_dials"]:
            told["no connection"] = one["refused_dials"]
        rows.append(
            (
                one["kind"],
                *(
                    ms(one[name])
                    for name in ("ping_p50_ms", "ping_p99_ms", "send_p50_ms", "send_p99_ms", "come_max_ms")
                ),
                *(f"{one[name]:.0f}" for name in ("rss_before_mib", "rss_most_mib", "rss_after_mib")),
                f"{one['cores']['server']:.2f}",
                f"{one['load_1m']:.1f}",
                ", ".join(f"{name} {n:,}" for name, n in sorted(told.items())) or "-",
            )
        )
    return report.columns(rows, left=(0, 11))
