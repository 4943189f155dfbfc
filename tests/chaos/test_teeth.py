"""The chaos tests can fail: each of these bugs, put into a node without other faults, is found."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from chatd.chat import Chat
from chatd.delivery import Delivery
from chatd.errors import CloseCode
from chatd.registry import Registry
from chatd.session import Session, State
from chatd.writer import Lane
from tests.chaos.injector import Odds
from tests.chaos.running import run
from tests.chaos.servers import Place
from tests.chaos.world import World
from tests.fix_redis import MakeRedis

Patch: TypeAlias = pytest.MonkeyPatch
SHARE: Final = 0.05
SEEDS_MAX: Final = 5
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


def status_lost(patch: Patch) -> None:
    patch.setattr(Chat, "announce", lambda self, change: None)


def receipt_lost(patch: Patch) -> None:
    patch.setattr(Delivery, "push_receipt", lambda self, *args: None)


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
    real = Chat._run_read

    async def run_read(self: Chat, session: Session, id: int, work: Any) -> None:
        await real(self, session, id, work)
        if session.state is State.LIVE and dice.random() < 0.1:
            session.reads += 1

    patch.setattr(Chat, "_run_read", run_read)


BUGS: Final[list[tuple[Callable[[Patch], None], str]]] = [
    (push_lost, "order: "), (push_twice, "twice: "), (push_late, "order: "), (batch_lost, "lost: "), (wrong_one_replaced, "was closed as replaced"),
    (status_lost, " sees "), (receipt_lost, "was told"), (link_lost, "has no link to it"), (read_uncounted, "'reads'"),
]  # fmt: skip


@pytest.mark.parametrize(("bug", "sign"), BUGS, ids=[bug.__name__ for bug, _ in BUGS])
async def test_a_bug_is_found(
    bug: Callable[[Patch], None], sign: str, make_db: Callable[[], str], make_redis: MakeRedis, tmp_path: Path, monkeypatch: Patch
) -> None:  # fmt: skip
    """Within some seeds: a short one may end before anybody could see the bug, such as a status that nobody watched."""
    bug(monkeypatch)
    redis = make_redis()
    for number in range(1, SEEDS_MAX + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        place = Place(make_db(), folder, [redis])
        world = World(number, 1, place, chaos_s=0.6, quiet_s=0.8, odds=Odds(fail=0, lose=0, hang=0), faults=False)
        findings = await run(world)
        print("\n".join(findings[:10]))
        if any(sign in finding for finding in findings):
            return
    pytest.fail(f"not found with {SEEDS_MAX} seeds")
