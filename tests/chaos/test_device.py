"""The device of the chaos tests keeps to docs/protocol.md, section 5, where a refused entry is not of
its outbox.

Without a node: what the device sends is written down, and the answers are made here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.chaos.device import Device
from tests.faults.checker import Acked
from tests.until import until

OLD: Final = "00000000-0000-4000-8000-000000000001"  # a cid that was acked before
RETRY_MS: Final = 1
Sent = tuple[str, str]


class Written:
    """Takes the place of a connection, and of its protocol: the requests of a device, in order."""

    close_code = None

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.protocol = self

    def send_text(self, payload: bytes) -> None:
        self.requests.append(json.loads(payload))

    def send_data(self) -> None: ...

    def of(self, cid: str) -> int:
        """The number of the request in which this cid went out last."""
        return next(int(one["id"]) for one in reversed(self.requests) if one["cid"] == cid)

    def since(self, n: int) -> list[Sent]:
        return [(one["t"], one["cid"]) for one in self.requests[n:]]


@pytest.fixture
def written() -> Written:
    return Written()


@pytest.fixture
def device(written: Written) -> Iterator[Device]:
    one = Device("alice", "d1", "", random.Random(1), lambda: (0, ""), [])
    one._ws = written  # type: ignore[assignment]
    yield one
    one._lost()


def refuse(device: Device, written: Written, sent: str, code: str, **keys: Any) -> None:
    device._frame({"t": "err", "id": written.of(sent), "code": code, "msg": "", **keys})


async def test_what_is_behind_a_repeat_that_was_refused_goes_out_again_before_new_ones(
    device: Device, written: Written
) -> None:
    device.ask("send", to="bob", cid=OLD, body="again", retry=True)
    first = device.post("bob", body="behind the repeat")
    refuse(device, written, OLD, "unavailable", retry_ms=RETRY_MS)
    assert written.since(2) == [("skip", OLD)]
    second = device.post("bob", body="written before the first one's answer came")
    assert written.since(3) == []
    refuse(device, written, first, "blocked", cid=OLD)
    await until(lambda: second in [cid for _, cid in written.since(0)])
    assert [sent for sent in written.since(3) if sent[0] == "send"] == [("send", first), ("send", second)]


async def test_what_is_before_one_that_waits_for_a_stranger_goes_out_again_before_it(
    device: Device, written: Written
) -> None:
    """A refusal on arrival overtakes that of an earlier entry, which waited in a lane."""
    first = device.post("bob", body="in a lane")
    second = device.post("bob", body="refused when it arrives")
    refuse(device, written, second, "blocked", cid=OLD)
    assert written.since(2) == [("skip", OLD)]
    await until(lambda: len(written.requests) > 3)
    assert written.since(3) == [("send", first), ("send", second)]


def test_a_repeat_has_its_answer_before_it_is_repeated(device: Device, written: Written) -> None:
    """By the second one the server would take it that the first one's refusal was read."""
    device.history.events.append(Acked("1", 1, 1, OLD, dup=False))
    device.peer_of["1"] = "bob"
    assert device.acked_send() == ("bob", OLD)
    device.ask("send", to="bob", cid=OLD, body="again", retry=True)
    assert device.acked_send() is None
    device._frame({"t": "ok", "id": written.of(OLD), "c": "1", "seq": 1, "ts": 1, "dup": True})
    assert device.acked_send() == ("bob", OLD)
