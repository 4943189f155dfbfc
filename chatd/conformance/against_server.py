"""Tries a server: all vectors for servers, the schemas of what it sent, and the random walks.

    await Trial(target, report).run(...)

One case after the other, in the order of their settings, so that a server that the kit starts is
started once for each set of them.
"""

from __future__ import annotations

import itertools
import json
import ssl
import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Final

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from chatd.conformance.against_rules import GROUP, RulesTrial, Walks
from chatd.conformance.launch import ServerPlace, Target
from chatd.conformance.report import Case, ConformanceReport, Verdict
from chatd.conformance.schemas import FrameChecks
from chatd.conformance.server_vectors import WAIT_S, ServerRunner, WireLink, dial, whole_welcome
from chatd.conformance.values import Mismatch
from chatd.conformance.vectors import Vector
from chatd.errors import ChatdError

REACH_TTL_S: Final = 300  # of the first token: servers may bound how long one is valid


def is_wanted(title: str, only: Iterable[str]) -> bool:
    """Whether a case is one of those that `--only` names: by a part of its title, or a pattern."""
    names = list(only)
    return not names or any(name in title or fnmatchcase(title, name) for name in names)


class ServerTrial:
    """Tries one server. `on_case` is called with each case as it ends."""

    def __init__(
        self, target: Target, report: ConformanceReport, on_case: Callable[[Case], None], wait_s: float = WAIT_S
    ) -> None:
        self._target = target
        self._report = report
        self._on_case = on_case
        self._wait_s = wait_s
        self.checks = FrameChecks()

    async def run(self, vectors: list[Vector]) -> None:
        """Run vectors; then judge all frames that arrived by their schemas."""
        runnable = []
        for vector in vectors:
            if missing := self._target.missing(vector):
                self._end(Case(vector.file, vector.name, Verdict.NOT_RUN, missing))
            else:
                runnable.append(vector)
        runnable.sort(key=_settings)
        for _, some in itertools.groupby(runnable, _settings):
            await self._run_at_one(list(some))

    async def _run_at_one(self, vectors: list[Vector]) -> None:
        left = list(vectors)
        try:
            async with self._target.place(vectors[0].settings) as place:
                await reach(place)
                while left:
                    await self._run_one(place, left.pop(0))
        except ChatdError as e:
            if not self._report.count(Verdict.PASSED):
                raise  # most likely it was asked for in a wrong way: nothing can be tried
            for vector in left:
                self._end(Case(vector.file, vector.name, Verdict.FAILED, str(e)))

    async def _run_one(self, place: ServerPlace, vector: Vector) -> None:
        began = time.monotonic()
        runner = ServerRunner(place.url, place.token, place.drain, self._wait_s)
        reason = ""
        try:
            await runner.run(vector.steps)
        except (Mismatch, OSError, InvalidHandshake) as e:
            reason = str(e) or type(e).__name__
        for schema, frame in runner.judged:
            self.checks.judge(schema, frame, f"{vector.file}: {vector.name}")
        verdict = Verdict.FAILED if reason else Verdict.PASSED
        self._end(Case(vector.file, vector.name, verdict, reason, time.monotonic() - began))

    async def run_walks(self, walks: Walks, names: list[str]) -> None:
        """The stateful rules, on a server with the defaults."""
        if not names:
            return
        if missing := self._target.missing(Vector("walks", "", [], {})):
            for name in names:
                self._end(Case(GROUP, name, Verdict.NOT_RUN, missing))
            return
        trial = RulesTrial(walks, self.checks, self._end, self._wait_s)
        async with self._target.place({}) as place:
            await reach(place)
            await trial.run(place, names)
        judged = ", ".join(f"{rule} {count}" for rule, count in trial.totals.most_common())
        self._report.notes |= {"seed of the walks": walks.seed, "judged in the walks": judged}

    def end_checks(self) -> None:
        """A case for each schema: did all frames that arrived fit?"""
        for case in self.checks.cases():
            self._end(case)

    def _end(self, case: Case) -> None:
        self._report.add(case)
        self._on_case(case)


def _settings(vector: Vector) -> tuple[bool, bool, str]:
    """Those without settings first; those that end the server last of theirs."""
    return bool(vector.settings), vector.is_drained, json.dumps(vector.settings, sort_keys=True)


async def reach(place: ServerPlace) -> None:
    """Raise ChatdError with one line if nothing can be tried: no server, or no good token."""
    try:
        ws = await dial(place.url)
    except ssl.SSLCertVerificationError as e:
        raise ChatdError(
            f"{place.url} has a certificate that is not trusted: {e.verify_message};"
            " name the file of its authority in SSL_CERT_FILE"
        ) from None
    except (OSError, TimeoutError, InvalidHandshake, InvalidURI) as e:
        raise ChatdError(f"{place.url} cannot be connected to: {e}; is it the address of the server's /ws?") from None
    link = WireLink(ws)
    try:
        token = place.token("conformance", {"ttl_s": REACH_TTL_S} if place.token.has_lifetimes else {})
        id, hello = link.request({"t": "hello", "v": 1, "device": "d1", "token": token})
        await ws.send(json.dumps(hello))
        welcome = await whole_welcome(link, id)
    except (Mismatch, TimeoutError, ConnectionClosed) as e:
        raise ChatdError(f"{place.url} does not answer hello: {str(e) or 'nothing arrived in time'}") from None
    finally:
        ws.transport.abort()
    if welcome.get("t") != "welcome":
        raise ChatdError(
            f"{place.url} refuses the kit's token: {welcome.get('msg', welcome)};"
            " give the key that it checks by (--keys-file, --data-dir, --secret), or --token-command"
        )
