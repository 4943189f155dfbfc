"""A stream gives each item to one of those who iterate, and ends for all."""

from __future__ import annotations

import asyncio

from chatd.client.stream import Stream


async def test_each_item_goes_to_one_and_none_ends_it_for_all() -> None:
    items: asyncio.Queue[int | None] = asyncio.Queue()
    stream = Stream(items.get)

    async def read() -> list[int]:
        return [item async for item in stream]

    readers = [asyncio.create_task(read()) for _ in range(2)]
    for item in (1, 2, 3, None, None):
        items.put_nowait(item)
    seen = await asyncio.gather(*readers)
    assert sorted(seen[0] + seen[1]) == [1, 2, 3]


async def test_a_loop_that_was_left_can_be_begun_again() -> None:
    items = iter([0, 1, 2])

    async def pull() -> int | None:
        return next(items, None)

    stream = Stream(pull)
    async for item in stream:
        assert item == 0
        break
    assert [item async for item in stream] == [1, 2]
