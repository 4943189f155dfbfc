"""People who talk by clients of the SDK, in Node and in tabs, while lines, tabs and the server break.

Crowd      who talks to whom; `settle` waits until all has arrived
Weather    what breaks, and when, by the seed
verdict    the findings: none is right
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from playwright.async_api import Error as PlaywrightError

from tests.faults.checker import Finding, Log
from tests.faults.crowd import read_log
from tests.fix_process import Process
from tests.js.driven import Driven, Refused
from tests.js.driven_tabs import Profile, Tab
from tests.js.judge import Who, from_the_start, judge_shown, judge_told
from tests.proxy import Proxy
from tests.until import Late, until

UNANSWERED_MAX: Final = 20
SETTLE_S: Final = 60.0
CUT_BYTES: Final = 4_000
VIEW_S: Final = 20.0
View: TypeAlias = Callable[[], Awaitable[list[Finding]]]


class Crowd:
    """`peers`: whom each user talks to. `talking`: they go on saying things."""

    def __init__(
        self, node: Sequence[Driven], profiles: Sequence[Profile], peers: dict[str, list[str]], rng: random.Random,
        pause_s: float,
    ) -> None:  # fmt: skip
        self.node, self.profiles, self.peers, self.rng, self.pause_s = node, profiles, peers, rng, pause_s
        self.view_s = VIEW_S
        self._is_quiet = asyncio.Event()
        self._talk: list[asyncio.Task[None]] = []
        self._said = 0

    @property
    def clients(self) -> list[Driven]:
        """All that ever were."""
        return [*self.node, *(tab for profile in self.profiles for tab in profile.tabs)]

    @property
    def living(self) -> list[Driven]:
        return [one for one in self.clients if not one.has_ended]

    @property
    def acked(self) -> int:
        return sum(one.acked for one in self.clients)

    def start(self) -> None:
        self._talk = [asyncio.create_task(self._talks(one)) for one in self.living]

    def joins(self, client: Driven) -> None:
        """A tab that was opened meanwhile."""
        self._talk.append(asyncio.create_task(self._talks(client)))

    async def _talks(self, client: Driven) -> None:
        rng = random.Random(self.rng.getrandbits(64))
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_quiet.wait(), rng.uniform(0, 2 * self.pause_s))
                return
            if client.has_ended:
                return
            if len(client.unanswered) >= UNANSWERED_MAX or (isinstance(client, Tab) and client.is_frozen):
                continue
            with contextlib.suppress(PlaywrightError):  # the tab was closed in between
                await self._say(client, rng)

    async def _say(self, client: Driven, rng: random.Random) -> None:
        peer = rng.choice(self.peers[client.history.user])
        mine = client.mine.get(peer, [])
        self._said += 1
        what = rng.random()
        if mine and what < 0.15:
            await client.ask("edit", peer, rng.choice(mine), self._text(client, "edits"))
        elif mine and what < 0.2:
            await client.ask("delete", peer, mine.pop(rng.randrange(len(mine))))
        else:
            await client.ask("message", peer, self._text(client, "says"))

    def _text(self, client: Driven, what: str) -> str:
        text = f"{client.history.device} {what} {self._said}"
        client.unreported.add(text)
        return text

    async def quiet(self) -> None:
        """Nobody says anything from now on."""
        self._is_quiet.set()
        await asyncio.gather(*self._talk)

    async def settle(self, conninfo: str) -> None:
        """Wait until all that lives has its answers, and Node's clients have all there is.

        What is wrong then is for `verdict`.
        """
        await self.quiet()
        news = self.clients[0].changed
        with contextlib.suppress(Late):
            await until(
                lambda: all(one.line == "online" and not one.unanswered for one in self.living),
                within_s=SETTLE_S,
                changed=news,
            )
        log, who = read_log(conninfo)
        heads = [(one, c, len(log[c])) for one in self.node for c in log if one.history.user in who[c]]
        with contextlib.suppress(Late):
            await until(
                lambda: all(one.have.get(c, 0) >= head for one, c, head in heads), within_s=SETTLE_S, changed=news
            )

    async def verdict(self, conninfo: str) -> list[Finding]:
        log, who = read_log(conninfo)
        findings: list[Finding] = []
        for client in self.living:
            views = [self._shown(client, peer, log, who) for peer in self.peers[client.history.user]]
            for view in [*views, self._unread(client)]:
                findings += await settled(view, self.view_s)
        return judge_told(self.clients, self.living, log, who) + from_the_start(self.node, log, who) + findings

    @staticmethod
    def _shown(client: Driven, peer: str, log: Log, who: Who) -> View:
        async def view() -> list[Finding]:
            return judge_shown(client.history, peer, await client.ask("shown", peer), log, who)

        return view

    @staticmethod
    def _unread(client: Driven) -> View:
        async def view() -> list[Finding]:
            here, there = await client.ask("unread")
            text = f"{client.history.device} has unread {here}, and the server {there}"
            return [] if here == there else [Finding("unread", text)]

        return view


async def settled(view: View, within_s: float = VIEW_S) -> list[Finding]:
    """What is wrong with it in the end: the last news may be on their way to a tab."""
    findings: list[Finding] = []

    async def is_right() -> bool:
        nonlocal findings
        try:
            findings = await view()
        except (Refused, PlaywrightError) as e:
            findings = [Finding("fault", str(e))]
        return not findings

    with contextlib.suppress(Late):
        await until(is_right, within_s=within_s, pause_s=0.2)
    return findings


class Weather:
    """One thing breaks at a time, at times of the seed; `done` counts what was done."""

    def __init__(
        self, crowd: Crowd, chatd: Process, proxies: Sequence[Proxy], rng: random.Random, pause_s: float
    ) -> None:
        """`pause_s`: from one to the next; what lasts does so for as long."""
        self._crowd, self._chatd, self._proxies, self._rng, self._pause_s = crowd, chatd, proxies, rng, pause_s
        self.done: Counter[str] = Counter()

    async def rages(self, for_s: float) -> None:
        """Each kind once in an order of the seed, then any; ends with a good line."""
        clock = asyncio.get_running_loop().time
        end = clock() + for_s
        kinds = [
            self.cut_request,
            self.cut_answer,
            self.drop,
            self.swallow,
            self.kill,
            self.crash,
            self.close,
            self.freeze,
        ]
        deck = kinds.copy()
        self._rng.shuffle(deck)
        while clock() < end or deck:
            await self._a_while()
            kind = deck.pop() if deck else self._rng.choice(kinds)
            await kind()
            self.done[kind.__name__] += 1
        for proxy in self._proxies:
            proxy.heal()

    async def _a_while(self) -> None:
        await asyncio.sleep(self._rng.uniform(0, 2 * self._pause_s))

    async def cut_request(self) -> None:
        self._rng.choice(self._proxies).cut(requests=self._rng.randrange(CUT_BYTES))

    async def cut_answer(self) -> None:
        self._rng.choice(self._proxies).cut(answers=self._rng.randrange(CUT_BYTES))

    async def drop(self) -> None:
        self._rng.choice(self._proxies).drop()

    async def swallow(self) -> None:
        proxy = self._rng.choice(self._proxies)
        proxy.swallow(*self._rng.choice([(), ("requests",), ("answers",)]))
        await self._a_while()
        proxy.heal()

    async def kill(self) -> None:
        self._chatd.kill()
        await self._a_while()
        await self._chatd.start()

    def _tab(self) -> tuple[Profile, Tab]:
        """The leading one, as often as not."""
        profile = self._rng.choice(self._crowd.profiles)
        return profile, self._rng.choice((self._rng.random() < 0.5 and profile.leaders) or profile.open_tabs)

    async def crash(self) -> None:
        profile, tab = self._tab()
        await tab.crash()
        await self._another(profile)

    async def close(self) -> None:
        profile, tab = self._tab()
        await tab.close()
        await self._another(profile)

    async def freeze(self) -> None:
        _, tab = self._tab()
        await tab.freeze()
        await self._a_while()
        await tab.thaw()

    async def _another(self, profile: Profile) -> None:
        self._crowd.joins(await profile.open())
