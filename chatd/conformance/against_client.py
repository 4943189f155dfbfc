"""Tries a client: all vectors for clients, and walks, each with a process of its own.

await ClientTrial(command, report, on_case).run(vectors, walks, names)
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable

from chatd.conformance.adapter import Adapter
from chatd.conformance.against_rules import GROUP, Walks
from chatd.conformance.client_vectors import ClientRunner
from chatd.conformance.client_walk import ClientWalk
from chatd.conformance.report import Case, ConformanceReport, Verdict
from chatd.conformance.server_vectors import WAIT_S
from chatd.conformance.values import Mismatch
from chatd.conformance.vectors import Vector


class ClientTrial:
    """Tries one client. `on_case` is called with each case as it ends."""

    def __init__(
        self,
        command: str,
        report: ConformanceReport,
        on_case: Callable[[Case], None],
        wait_s: float = WAIT_S,
        jobs: int = 1,
    ) -> None:
        self._command = command
        self._report = report
        self._on_case = on_case
        self._wait_s = wait_s
        self._places = asyncio.Semaphore(jobs)

    async def run(self, vectors: Iterable[Vector], walks: Walks | None = None, names: Iterable[str] = ()) -> None:
        """Run vectors, and the walks of these names.

        Raises ChatdError if the program does not start.
        """
        async with Adapter(self._command) as adapter:
            can = adapter.can
            self._report.notes["client"] = adapter.name
        cases = [self._vector(vector, can) for vector in vectors]
        totals: Counter[str] = Counter()
        if walks is not None:
            cases += [self._walk(walks, name, can, totals) for name in names]
        await asyncio.gather(*cases)
        if walks is not None and totals:
            judged = ", ".join(f"{rule} {count}" for rule, count in totals.most_common())
            self._report.notes |= {"seed of the walks": walks.seed, "judged in the walks": judged}

    async def _vector(self, vector: Vector, can: frozenset[str]) -> None:
        async def run(adapter: Adapter) -> None:
            await ClientRunner(adapter, self._wait_s).run(vector.steps)

        await self._case(vector.file, vector.name, vector.app - can, run)

    async def _walk(self, walks: Walks, name: str, can: frozenset[str], totals: Counter[str]) -> None:
        async def run(adapter: Adapter) -> None:
            walk = ClientWalk(adapter, random.Random(f"{walks.seed}/{name}"), walks.steps, self._wait_s)
            try:
                await walk.run()
            except Mismatch as e:
                raise Mismatch(f"{e} | repeat it by --seed {walks.seed} --only '{name}'") from e
            totals.update(walk.checks)

        await self._case(GROUP, name, {"send"} - can, run)

    async def _case(
        self, group: str, name: str, lacking: Iterable[str], run: Callable[[Adapter], Coroutine[None, None, None]]
    ) -> None:
        if words := sorted(lacking):
            reason = f"needs a client's program that can {', '.join(words)}"
            self._end(Case(group, name, Verdict.NOT_RUN, reason))
            return
        async with self._places:
            began = time.monotonic()
            reason = ""
            try:
                async with Adapter(self._command) as adapter:
                    await adapter.unless_failed(run(adapter))
            except Mismatch as e:  # a program that ends fails at once
                reason = str(e)
            verdict = Verdict.FAILED if reason else Verdict.PASSED
            self._end(Case(group, name, verdict, reason, time.monotonic() - began))

    def _end(self, case: Case) -> None:
        self._report.add(case)
        self._on_case(case)
