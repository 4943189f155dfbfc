"""How many nodes a run has, and which user is at which of them. Pure.

A message crosses if its two people are at different nodes: it goes over Redis then. With pairs of
users (2p and 2p + 1) the share of the pairs that cross is the share of the messages that do, as all
users send equally often.
"""

from __future__ import annotations

import argparse
from typing import Final

NODES_MAX: Final = 32
CROSS: Final = 1.0  # unless a scenario asks for less


def pairs(n: int, nodes: int, cross: float) -> list[int]:
    """The node of each of the users 0 ... 2n - 1.

    Of the n pairs `cross` are at two nodes, to the nearest pair; with one node none is. A node has
    two users more than another at most among those that cross, and two among those that do not.
    Those that cross go over all ordered pairs of nodes in turns.
    """
    crossing = round(n * cross) if nodes > 1 else 0
    found: list[int] = []
    for p in range(n):
        # Evenly among the others: a part of the users is as mixed as the whole
        before, after = crossing * p // n, crossing * (p + 1) // n
        if after > before:
            home, further = before % nodes, 1 + before // nodes % (nodes - 1)
            found += (home, (home + further) % nodes)
        else:
            home = (p - before) % nodes
            found += (home, home)
    return found


def nodes(text: str) -> list[int]:
    """`1,2,8`: numbers of nodes, each once."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found) or not all(1 <= n <= NODES_MAX for n in found):
        raise argparse.ArgumentTypeError(f"{text} is not N[,N...], each from 1 to {NODES_MAX} and named once")
    return found


def share(text: str) -> float:
    """`0.5`: a part of a whole, from 0 to 1."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to 1")
    return found


def flags(parser: argparse.ArgumentParser, *, cross: bool = False) -> None:
    """`--nodes N` of a scenario that runs one layout; `--cross` where its users write in pairs."""
    parser.add_argument(
        "--nodes",
        type=int,
        choices=range(1, NODES_MAX + 1),
        default=1,
        metavar="N",
        help="nodes on one PostgreSQL; with a Redis where there are several (default: 1)",
    )
    if cross:
        cross_flag(parser)


def cross_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cross",
        type=share,
        default=CROSS,
        metavar="X",
        help="share of the messages whose two people are at different nodes (default: 1, all)",
    )
