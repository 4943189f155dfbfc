"""A node to which every hello with a mark is one of a storm: a pass finds what changed."""

from __future__ import annotations

import math

from chatd.store import Store


def sweeping(store: Store, gather_s: float = 0.0) -> None:
    """From now on, however few come. A hello waits for others for `gather_s`."""
    sweeps = store.sweeps
    sweeps.gather_s = gather_s
    sweeps._worth, sweeps._sizes_at, sweeps._paused_until = 0.0, math.inf, -math.inf
