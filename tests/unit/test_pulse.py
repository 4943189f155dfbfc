"""Rests that end at the beat of the node, and without one by themselves."""

from __future__ import annotations

import asyncio

import pytest

from chatd.loop.pulse import Pulse

FAR_S = 3_600.0
WAIT_S = 10.0


async def rest(pulse: Pulse, longest_s: float) -> str:
    try:
        async with pulse.rest(longest_s):
            await asyncio.Event().wait()
    except TimeoutError:
        return "rested"
    return "never"


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def test_a_beat_ends_all_rests_and_none_of_later() -> None:
    pulse = Pulse()
    pulse.beat()
    resting = [asyncio.create_task(rest(pulse, FAR_S)) for _ in range(3)]
    await turns()
    assert not any(task.done() for task in resting), "the beat before is over"
    pulse.beat()
    pulse.beat()  # a second one in the same turn finds their time over
    async with asyncio.timeout(WAIT_S):
        assert await asyncio.gather(*resting) == ["rested"] * 3
    later = asyncio.create_task(rest(pulse, FAR_S))
    await turns()
    assert not later.done()
    later.cancel()
    await asyncio.gather(later, return_exceptions=True)
    assert later.cancelled(), "a stop is no beat"
    pulse.beat()  # nobody is left


async def test_without_a_beat_a_rest_ends_by_itself() -> None:
    async with asyncio.timeout(WAIT_S):
        assert await rest(Pulse(), 0.01) == "rested"


async def test_what_is_awaited_ends_a_rest_and_its_errors_pass() -> None:
    pulse = Pulse()
    async with pulse.rest(FAR_S):
        await asyncio.sleep(0)
    with pytest.raises(ValueError, match="theirs"):
        async with pulse.rest(FAR_S):
            raise ValueError("theirs")
    pulse.beat()
    await turns()
