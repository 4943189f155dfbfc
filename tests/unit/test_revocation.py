"""Sessions of removed keys end: which, in what order, and how many in a turn of the loop."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import TYPE_CHECKING, Any, cast

import pytest

from chatd.chat.auth import KeySet
from chatd.core.frame_rate import FrameRate
from chatd.core.session import Session, State
from chatd.errors import CloseCode
from chatd.net import revocation
from chatd.net.access_log import KEY_REMOVED
from chatd.net.revocation import ENDS_A_TURN, Revocation
from chatd.ops import keys_file
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from chatd.net.connection import ClientConnection

NOW = 1_000.0


class Fake:
    """A connection, as far as it matters here."""

    address = "test"

    def __init__(self, keys: KeySet | None, kid: str = "", active_at: float = 0.0) -> None:
        self.session: Session | None = Session(cast("Any", self), FrameRate(1.0, 1), active_at)
        self.session.key = None if keys is None else keys.find(kid)
        self.session.state = State.LIVE
        self.closes: list[tuple[int, str]] = []

    def close(self, code: int, reason: str) -> None:
        assert self.session is not None
        self.closes.append((code, reason))
        self.session.state = State.CLOSED


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, KeySet]:
    """Key sets by the kids in them."""
    jwks = {kid: keys_file.make("HS256", kid) for kid in ("a", "b", "c")}
    path, made = tmp_path / "keys.json", {}
    for kids in ("a", "b", "c", "ab", "bc", "abc"):
        path.write_text(json.dumps({"keys": [jwks[kid] for kid in kids]}))
        path.chmod(0o600)
        made[kids] = KeySet.load(path)
    return made


def of(fakes: Iterable[Fake]) -> tuple[Revocation, list[asyncio.Task[None]]]:
    tasks: list[asyncio.Task[None]] = []

    def spawn(work: Any) -> asyncio.Task[None]:
        tasks.append(asyncio.get_running_loop().create_task(work))
        return tasks[-1]

    return Revocation(cast("list[ClientConnection]", list(fakes)), now=lambda: NOW, spawn=spawn), tasks


async def test_sessions_of_removed_keys_end_and_no_others(sets: dict[str, KeySet]) -> None:
    gone, stays, stranger, left = Fake(sets["abc"], "a"), Fake(sets["abc"], "b"), Fake(None), Fake(sets["abc"], "a")
    left.session = None  # its connection was lost
    revocation, tasks = of([gone, stays, stranger, left])
    revocation.begin(sets["bc"])
    await tasks[0]
    assert [one.closes for one in (gone, stays, stranger, left)] == [
        [(CloseCode.UNAUTHORIZED, KEY_REMOVED)],
        [],
        [],
        [],
    ]


async def test_one_that_has_closed_is_not_ended_again(sets: dict[str, KeySet]) -> None:
    one = Fake(sets["a"], "a")
    assert one.session is not None
    one.session.state = State.CLOSED
    revocation, tasks = of([one])
    revocation.begin(sets["b"])
    await tasks[0]
    assert one.closes == []


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocation, "PAUSE_S", 0.0)
    monkeypatch.setattr(revocation, "LOOKS_A_TURN", 10)


@pytest.mark.usefixtures("no_pause")
async def test_a_turn_ends_a_slice_and_looks_at_a_slice(sets: dict[str, KeySet]) -> None:
    """Each turn of the loop in which sessions end is counted; a node has 100,000."""
    fakes = [Fake(sets["a"], "a") for _ in range(10 * ENDS_A_TURN)]
    revocation, tasks = of(fakes)
    revocation.begin(sets["b"])
    ended, turns = [0], 0
    while not tasks[0].done():
        await asyncio.sleep(0)
        turns += 1
        ended.append(sum(len(one.closes) for one in fakes))
    assert ended[-1] == len(fakes)
    assert max(now - before for before, now in itertools.pairwise(ended)) == ENDS_A_TURN
    assert ended.index(ENDS_A_TURN) >= len(fakes) // 10, "they are looked at in slices before"
    assert turns >= len(fakes) // ENDS_A_TURN + len(fakes) // 10


@pytest.mark.usefixtures("no_pause")
async def test_who_was_active_of_late_ends_first(sets: dict[str, KeySet]) -> None:
    fakes = [Fake(sets["a"], "a", NOW - 1.0 if n % 10 == 9 else NOW - 60.0) for n in range(10 * ENDS_A_TURN)]
    revocation, tasks = of(fakes)
    revocation.begin(sets["b"])
    await until(lambda: any(one.closes for one in fakes))
    assert [bool(one.closes) for one in fakes] == [n % 10 == 9 for n in range(len(fakes))]
    await tasks[0]
    assert all(one.closes for one in fakes)


@pytest.mark.usefixtures("no_pause")
async def test_a_session_that_refreshed_in_time_stays(sets: dict[str, KeySet]) -> None:
    """It belongs to the key of its newest token, also between the look and its turn."""
    fakes = [Fake(sets["ab"], "a") for _ in range(2 * ENDS_A_TURN)]
    revocation, tasks = of(fakes)
    revocation.begin(sets["b"])
    await until(lambda: any(one.closes for one in fakes))
    late = next(one for one in fakes if not one.closes)
    assert late.session is not None
    late.session.key = sets["b"].find("b")
    await tasks[0]
    assert [one for one in fakes if not one.closes] == [late]


@pytest.mark.usefixtures("no_pause")
async def test_the_next_reload_takes_the_place_of_what_is_left(sets: dict[str, KeySet]) -> None:
    fakes = [Fake(sets["ab"], "ab"[n % 2]) for n in range(10 * ENDS_A_TURN)]
    revocation, tasks = of(fakes)
    revocation.begin(sets["b"])
    await until(lambda: any(one.closes for one in fakes))
    revocation.begin(sets["a"])  # a mistake: it was the other one that was to go
    ended = sum(len(one.closes) for one in fakes[::2])
    await asyncio.wait(tasks)
    assert tasks[0].cancelled()
    assert ended < len(fakes) / 2
    assert sum(len(one.closes) for one in fakes[::2]) == ended, "the key that is back ends nobody more"
    assert all(one.closes for one in fakes[1::2])
