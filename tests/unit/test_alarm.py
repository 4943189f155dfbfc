"""One timer for the earliest of all times; none while nothing is due."""

from __future__ import annotations

import asyncio
import math

import pytest

from chatd.loop.alarm import Alarm
from tests.until import until

FAR_S = 3_600.0
WAIT_S = 10.0


class Time:
    """What the alarm takes for now; the loop's timers do not follow it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def timers() -> int:
    """Timers of the loop that will fire."""
    return sum(not handle.cancelled() for handle in asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]


async def test_it_rings_when_the_earliest_time_is_there_whatever_order_they_are_given_in() -> None:
    now = asyncio.get_running_loop().time
    alarm = Alarm(now)
    ringing = asyncio.create_task(alarm.rings(0.0))
    await turns()
    for after_s in (FAR_S, 0.02, FAR_S * 2):
        alarm.by(now() + after_s)
        await turns()
    earliest = now() + 0.02
    async with asyncio.timeout(WAIT_S):
        await ringing
    assert now() >= earliest - 0.02


async def test_while_nothing_is_due_there_is_no_timer(time: Time) -> None:
    alarm = Alarm(time)
    before = timers()
    ringing = asyncio.create_task(alarm.rings(0.0))
    alarm.by(None)
    await turns()
    assert not ringing.done()
    assert timers() == before
    alarm.by(time.now + FAR_S)
    await turns()
    assert timers() == before + 1
    for n in range(100):
        alarm.by(time.now + FAR_S + n)
    await turns()
    assert timers() == before + 1, "those behind the earliest have none"
    ringing.cancel()
    await asyncio.gather(ringing, return_exceptions=True)
    assert timers() == before, "nothing fires after a stop"


async def test_a_time_that_is_past_rings_at_once_and_is_forgotten(time: Time) -> None:
    alarm = Alarm(time)
    alarm.by(time.now - 1.0)
    await alarm.rings(0.0)
    again = asyncio.create_task(alarm.rings(0.0))
    await turns()
    assert not again.done()
    alarm.by(time.now)
    await again


async def test_it_rings_once_for_all_that_is_due_within_the_time_between_two_rings(time: Time) -> None:
    alarm = Alarm(time)
    alarm.by(time.now)
    await alarm.rings(0.05)
    rings = 0

    async def count() -> None:
        nonlocal rings
        while True:
            await alarm.rings(0.05)
            rings += 1

    counting = asyncio.create_task(count())
    for _ in range(40):  # 1 ms apart each
        time.now += 0.001
        alarm.by(time.now)
        await turns()
    assert rings == 0, "not before 50 ms are over"
    time.now += 0.011
    await until(lambda: rings)
    assert rings == 1
    counting.cancel()
    await asyncio.gather(counting, return_exceptions=True)


async def test_what_is_said_while_nobody_waits_is_not_lost(time: Time) -> None:
    """As when the work of a ring sets the next."""
    alarm = Alarm(time)
    alarm.by(time.now + 1.0)
    alarm.by(time.now + math.inf)
    time.now += 1.0
    async with asyncio.timeout(WAIT_S):
        await alarm.rings(0.0)
