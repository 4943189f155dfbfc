"""Tries a client: all vectors for clients, each with a process of its own.

await ClientTrial(command, report, on_case).run(vectors)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from chatd.conformance.adapter import Adapter
from chatd.conformance.client_vectors import ClientRunner
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

    async def run(self, vectors: list[Vector]) -> None:
        """Run vectors. Raises ChatdError if the program does not start."""
        async with Adapter(self._command) as adapter:
            can = adapter.can
            self._report.notes["client"] = adapter.name
        await asyncio.gather(*(self._case(vector, can) for vector in vectors))

    async def _case(self, vector: Vector, can: frozenset[str]) -> None:
        if lacking := sorted(vector.app - can):
            reason = f"needs a client's program that can {', '.join(lacking)}"
            self._end(Case(vector.file, vector.name, Verdict.NOT_RUN, reason))
            return
        async with self._places:
            began = time.monotonic()
            reason = await self._run_one(vector)
            verdict = Verdict.FAILED if reason else Verdict.PASSED
            self._end(Case(vector.file, vector.name, verdict, reason, time.monotonic() - began))

    def _end(self, case: Case) -> None:
        self._report.add(case)
        self._on_case(case)

    async def _run_one(self, vector: Vector) -> str:
        """Why it failed, or nothing. A program that ends fails at once."""
        try:
            async with Adapter(self._command) as adapter:
                await adapter.unless_failed(ClientRunner(adapter, self._wait_s).run(vector.steps))
        except Mismatch as e:
            return str(e)
        return ""
