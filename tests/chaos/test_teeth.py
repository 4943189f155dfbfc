"""The chaos tests can fail: each of these bugs, put into a node without other faults, is found."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from chatd.chat import hello
from chatd.chat.delivery import Delivery
from chatd.chat.presence_push import PresencePush
from chatd.chat.reads import Reads
from chatd.chat.receipts import Receipts
from chatd.cluster.presence_sync import PresenceSync
from chatd.core import devices
from chatd.core.admission import AdmissionQueue
from chatd.core.conversations import Registry
from chatd.core.session import Session, State
from chatd.core.steady_time import Steady
from chatd.errors import CloseCode, RateLimited
from chatd.postgres.lane import Lane
from tests.chaos import limits, world
from tests.chaos.injector import Odds
from tests.chaos.running import run
from tests.chaos.servers import Place
from tests.chaos.world import World
from tests.fix_redis import MakeRedis, OwnRedis

Patch: TypeAlias = pytest.MonkeyPatch
SHARE: Final = 0.05
SEEDS_MAX: Final = 10
CALM: Final = Odds(fail=0, lose=0, hang=0)
dice: Final = random.Random(1)


def push_lost(patch: Patch) -> None:
    real = Delivery._push
    patch.setattr(Delivery, "_push", lambda self, *args: None if dice.random() < SHARE else real(self, *args))


def push_twice(patch: Patch) -> None:
    real = Delivery._push

    def push(self: Delivery, *args: Any) -> None:
        for _ in range(2 if dice.random() < SHARE else 1):
            real(self, *args)

    patch.setattr(Delivery, "_push", push)


def push_late(patch: Patch) -> None:
    """So that the next one may overtake it."""
    real = Delivery._push

    def push(self: Delivery, *args: Any) -> None:
        if dice.random() < SHARE:
            asyncio.get_running_loop().call_later(0.02, real, self, *args)
        else:
            real(self, *args)

    patch.setattr(Delivery, "_push", push)


def batch_lost(patch: Patch) -> None:
    """Acked, and rolled back."""
    real = Lane._append

    async def append(self: Lane, batch: Any) -> Any:
        answer = await real(self, batch)
        if batch.messages and self._conn is not None and dice.random() < SHARE:
            await self._conn.execute("DELETE FROM entries WHERE cid = %s", (batch.messages[-1].cid,))
        return answer

    patch.setattr(Lane, "_append", append)


def wrong_one_replaced(patch: Patch) -> None:
    real = Registry.attach

    def attach(self: Registry, user: Any, device: Any, session: Session) -> None:
        others = [one for name, one in user.sessions.items() if name != device]
        real(self, user, device, session)
        if others and dice.random() < 0.2:
            others[0].sink.close(CloseCode.REPLACED, "a bug")

    patch.setattr(Registry, "attach", attach)


def newer_replaced(patch: Patch) -> None:
    real = Registry.attach

    def attach(self: Registry, user: Any, device: Any, session: Session) -> None:
        old = user.sessions.get(device)
        real(self, user, device, session)
        if old is not None:
            session.sink.close(CloseCode.REPLACED, "a bug")

    patch.setattr(Registry, "attach", attach)


def few_devices(patch: Patch) -> None:
    """So that some users of each seed have too many."""
    patch.setitem(world.ROOM, "devices_max", 2)


def busiest_closed(patch: Patch) -> None:
    few_devices(patch)
    patch.setattr(hello, "min", max, raising=False)


def closed_as_too_many(patch: Patch) -> None:
    """By the second device."""
    real = hello._attach

    def attach(s: Any, *args: Any) -> Any:
        settings, s.settings = s.settings, s.settings.model_copy(update={"devices_max": 1})
        try:
            return real(s, *args)
        finally:
            s.settings = settings

    patch.setattr(hello, "_attach", attach)


def status_lost(patch: Patch) -> None:
    patch.setattr(PresencePush, "announce", lambda self, change: None)


def receipt_lost(patch: Patch) -> None:
    patch.setattr(Receipts, "push", lambda self, *args: None)


def link_lost(patch: Patch) -> None:
    """From a user to a conversation, when it is made by the other one."""
    real = Registry.hold

    def hold(self: Registry, id: Any, a: Any, b: Any) -> Any:
        conv = real(self, id, a, b)
        if (user := self.users.get(b)) is not None and a != b:
            user.peers.pop(a, None)
        return conv

    patch.setattr(Registry, "hold", hold)


def read_uncounted(patch: Patch) -> None:
    real = Reads._run

    async def run(self: Reads, session: Session, *args: Any) -> None:
        await real(self, session, *args)
        if session.state is State.LIVE and dice.random() < 0.1:
            session.reads += 1

    patch.setattr(Reads, "_run", run)


def limit_per_node(patch: Patch) -> None:
    """Whatever Redis says."""
    _answered(patch, lambda ask, row: row._replace(granted=ask.want))


def refused_for_good(patch: Patch) -> None:
    """Who was over the limit once."""
    patch.setattr(limits, "FOR_GOOD_S", 2.0)
    _answered(patch, lambda ask, row: row._replace(wait_s=3_600.0) if row.granted < ask.want else row)


def _answered(patch: Patch, change: Callable[[Any, Any], Any]) -> None:
    real = AdmissionQueue.decide

    def decide(self: AdmissionQueue, call: Any, mark: int, rows: Any, now: float) -> None:
        real(self, call, mark, [change(ask, row) for ask, row in zip(call.asks, rows, strict=True)], now)

    patch.setattr(AdmissionQueue, "decide", decide)


def limit_untold(patch: Patch) -> None:
    patch.setattr(RateLimited, "code", "overloaded")


def too_many_stay(patch: Patch) -> None:
    """Where they are at several nodes."""
    patch.setattr(limits, "FOR_GOOD_S", 2.0)
    patch.setattr(devices, "surplus", lambda *_: [])


def times_of_the_wall(patch: Patch) -> None:
    """For attach times; nodes read a step one after another."""
    patch.setattr(Steady, "ms", lambda self: self._clock.now_ms())


def not_listed_again(patch: Patch) -> None:
    """A node that Redis has lost the users of believes that they are there."""
    real = PresenceSync._rewrite

    async def rewrite(self: PresenceSync) -> None:
        if self._metrics.lease_rewrites:
            await self._keys.begin()
            await self._keys.write((), self._n)
            self._written = True
        else:
            await real(self)

    patch.setattr(PresenceSync, "_rewrite", rewrite)


BUGS: Final[list[tuple[Callable[[Patch], None], str]]] = [
    (push_lost, "order: "),
    (push_twice, "twice: "),
    (push_late, "order: "),
    (batch_lost, "lost: "),
    (wrong_one_replaced, "was closed as replaced"),
    (newer_replaced, "was closed as replaced"),
    (busiest_closed, "as the longest idle"),
    (closed_as_too_many, "as one too many"),
    (status_lost, " sees "),
    (receipt_lost, "was told"),
    (read_uncounted, "'reads'"),
]


# With several nodes, and these faults.
AMONG: Final[list[tuple[Callable[[Patch], None], str, tuple[str, ...]]]] = [
    (limit_per_node, "over: ", ()), (refused_for_good, "for good: ", ()), (limit_untold, "untold: ", ()),
    (too_many_stay, "sessions: ", ()), (not_listed_again, "late: ", ("restart_redis",)),
    (times_of_the_wall, "was closed as replaced", ("step_database_clock",)), (link_lost, "has no link to it", ()),
]  # fmt: skip


@pytest.mark.parametrize(("bug", "sign"), BUGS, ids=[bug.__name__ for bug, _ in BUGS])
async def test_a_bug_is_found(
    bug: Callable[[Patch], None],
    sign: str,
    make_db: Callable[[], str],
    make_redis: MakeRedis,
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    """Within some seeds: a short one may end before anybody could see the bug, such as a status
    that nobody watched.
    """
    bug(monkeypatch)
    await find(
        sign,
        lambda seed, place: World(seed, 1, place, chaos_s=0.6, quiet_s=0.8, odds=CALM, only=()),
        make_db,
        [make_redis()],
        tmp_path,
    )


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("bug", "sign", "faults"), AMONG, ids=[f"{bug.__name__}-{'-'.join(faults)}" for bug, _, faults in AMONG]
)
async def test_a_bug_among_nodes_is_found(
    bug: Callable[[Patch], None],
    sign: str,
    faults: tuple[str, ...],
    make_db: Callable[[], str],
    make_redis: MakeRedis,
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    def make(seed: int, place: Place) -> World:
        one = World(seed, 2, place, chaos_s=0.6 if faults else 0.1, quiet_s=3.0, odds=CALM, only=faults)
        one.is_tight, one.has_apart = not faults, "hold_up_node" in faults
        return one

    bug(monkeypatch)
    await find(sign, make, make_db, [make_redis()], tmp_path)


async def find(
    sign: str, make: Callable[[int, Place], World], make_db: Callable[[], str], redis: list[OwnRedis], folder: Path
) -> None:  # fmt: skip
    for number in range(1, SEEDS_MAX + 1):
        own = folder / str(number)
        own.mkdir()
        findings = await run(make(number, Place(make_db(), own, redis)))
        print("\n".join(findings[:10]))
        if any(sign in finding for finding in findings):
            return
    pytest.fail(f"not found with {SEEDS_MAX} seeds")
