"""At debug each delivery is a line, on whichever node and whichever way it came; without debug
there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog
from structlog.testing import capture_logs

from chatd import log as logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fix_redis import OwnRedis
    from tests.fix_server import MakeServer


@pytest.fixture
def every_level() -> Iterator[None]:
    """A test before this one may have set up a log that drops debug."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(0))
    yield
    structlog.configure(**before)


@pytest.mark.cluster
@pytest.mark.usefixtures("every_level")
@pytest.mark.parametrize("debug", [True, False])
async def test_an_entry_is_followed_from_its_commit_to_the_other_nodes_devices(
    make_server: MakeServer,
    make_db: Callable[[], str],
    own_redis: OwnRedis,
    monkeypatch: pytest.MonkeyPatch,
    cid: str,
    debug: bool,
) -> None:
    settings = {"database_url": make_db(), "redis_url": own_redis.url}
    here, there = await make_server(**settings), await make_server(**settings)
    alice = await here.connect("alice", "phone")
    bob, desk = await there.connect("bob", "d1"), await there.connect("alice", "desk")
    monkeypatch.setattr(logs, "DEBUG_ON", debug)
    with capture_logs() as lines:
        sent = await alice.say("bob", cid=cid)
        await bob.push("entry")
        await desk.push("entry")
        await bob.close()
        again = await there.connect("bob", "d2", cursors={sent["c"]: 0})
        await again.push("entry")
    told = [
        (one["by"], one["conv"], one["seq"], one["cid"], one["to"])
        for one in lines
        if one["event"] == "entry.delivered"
    ]
    facts = (int(sent["c"]), 1, cid)
    assert told == [
        ("commit", *facts, ["alice/phone"]), ("bus", *facts, ["alice/desk", "bob/d1"]), ("resync", *facts, ["bob/d2"])
    ] * debug  # fmt: skip
    assert "hi" not in {value for line in lines for value in line.values() if isinstance(value, str)}
