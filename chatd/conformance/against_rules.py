"""Tries the stateful rules on a server: seeded walks, one case each.

    await RulesTrial(...).run(place)

A walk that fails is repeated by the same seed: `--seed S --only "walk 3"`.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from chatd.conformance.launch import ServerPlace
from chatd.conformance.report import Case, Verdict
from chatd.conformance.schemas import FrameChecks
from chatd.conformance.server_vectors import WAIT_S
from chatd.conformance.values import Mismatch
from chatd.conformance.walk import Walk

GROUP: Final = "walks"


@dataclass(frozen=True, slots=True)
class Walks:
    """How many walks of how many steps, and the seed of all."""

    seed: str = "1"
    count: int = 5
    steps: int = 60

    def names(self) -> list[str]:
        return [f"walk {n}" for n in range(1, self.count + 1)]


class RulesTrial:
    """Runs walks. `totals` counts what was judged, by rule."""

    def __init__(
        self, walks: Walks, checks: FrameChecks, on_case: Callable[[Case], None], wait_s: float = WAIT_S
    ) -> None:
        self.totals: Counter[str] = Counter()
        self._walks = walks
        self._checks = checks
        self._on_case = on_case
        self._wait_s = wait_s

    async def run(self, place: ServerPlace, names: Iterable[str]) -> None:
        """Run the walks of these names."""
        for name in names:
            began = time.monotonic()
            walk = Walk(place, random.Random(f"{self._walks.seed}/{name}"), self._walks.steps, self._wait_s)
            reason = ""
            try:
                await walk.run()
            except Mismatch as e:
                reason = f"{e} | repeat it by --seed {self._walks.seed} --only '{name}'"
            self.totals += walk.checks
            for device in walk.devices:
                for schema, frame in device.judged:
                    self._checks.judge(schema, frame, name)
            verdict = Verdict.FAILED if reason else Verdict.PASSED
            self._on_case(Case(GROUP, name, verdict, reason, time.monotonic() - began))
