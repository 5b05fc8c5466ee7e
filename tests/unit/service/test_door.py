"""Turns to read: the body that has taken longest ends for a newcomer. And no burst of clients takes all places."""

from __future__ import annotations

import asyncio

import pytest

from resilient_scan.service.bounds import BOUNDS, RequestError
from resilient_scan.service.door import Turns
from resilient_scan.service.server import BACKLOG


def test_no_more_than_so_many_read_at_a_time() -> None:
    async def reads() -> tuple[list[object], list[int]]:
        turns, end, inside, counts = Turns(3), asyncio.Event(), 0, []

        async def read() -> None:
            nonlocal inside
            async with turns.one():
                inside += 1
                try:
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    counts.append(inside)
                    await end.wait()
                finally:
                    inside -= 1

        tasks = []
        for _ in range(10):
            tasks.append(asyncio.create_task(read()))
            await asyncio.sleep(0.001)
        end.set()
        return await asyncio.gather(*tasks, return_exceptions=True), counts

    ended, counts = asyncio.run(reads())
    assert max(counts) == 3
    assert ended[-3:] == [None] * 3
    for error in ended[:-3]:
        assert isinstance(error, RequestError)
        assert (error.status, error.code) == (503, "busy")


def test_a_turn_that_has_ended_is_not_taken_again() -> None:
    async def reads() -> None:
        turns = Turns(1)
        for _ in range(5):
            async with turns.one():
                await asyncio.sleep(0)
        async with turns.one():
            assert len(turns._taken) == 1

    asyncio.run(reads())


@pytest.mark.parametrize("error", [TimeoutError("its own"), RequestError(413, "too_large", "x")])
def test_what_fails_in_a_turn_fails_as_itself(error: Exception) -> None:
    async def read() -> None:
        async with turns.one():
            raise error

    turns = Turns(1)
    with pytest.raises(type(error)) as caught:
        asyncio.run(read())
    assert caught.value is error
    assert turns._taken == []


def test_as_many_as_are_accepted_at_once_are_not_as_many_as_may_be_open() -> None:
    """Each gets a turn of the loop, in which its request is read, before newcomers can have taken its place."""
    assert BOUNDS.connections > 2 * BACKLOG
