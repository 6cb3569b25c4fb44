"""The budget of request bytes: who waits, who is refused, and that nothing stays counted."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from app.errors import Overloaded
from app.readers.bounded import read_body
from app.readers.byte_budget import SMALL, ByteBudget

ROOM = 10 * SMALL
LONG = 1000.0


async def test_requests_wait_in_turn_and_nothing_stays_counted() -> None:
    budget, order = ByteBudget(ROOM, LONG), list[str]()

    async def hold(name: str, size: int, until: asyncio.Event) -> None:
        with budget.lease() as lease:
            await lease.take(size)
            order.append(name)
            assert budget.held <= ROOM
            await until.wait()

    events = {name: asyncio.Event() for name in "abc"}
    tasks = [
        asyncio.create_task(hold(name, size, events[name]))
        for name, size in (("a", 7 * SMALL), ("b", 6 * SMALL), ("c", 2 * SMALL))
    ]
    await asyncio.sleep(0)
    assert order == ["a"], "c would fit, but b was first"
    events["a"].set()
    await asyncio.gather(tasks[0])
    await asyncio.sleep(0)
    assert order == ["a", "b", "c"]
    for event in events.values():
        event.set()
    await asyncio.gather(*tasks)
    assert budget.held == 0


async def test_without_room_in_time_it_is_429_and_the_next_one_is_let_in() -> None:
    budget = ByteBudget(ROOM, 0.01)
    with budget.lease() as first, budget.lease() as second, budget.lease() as third:
        await first.take(6 * SMALL)
        with pytest.raises(Overloaded, match="bytes") as caught:
            await second.take(5 * SMALL)
        assert caught.value.retry_after > 0
        await third.take(4 * SMALL)
        assert budget.held == ROOM
    assert budget.held == 0


async def test_a_caller_that_leaves_while_it_waits_holds_nothing() -> None:
    budget = ByteBudget(ROOM, LONG)

    async def hold() -> None:
        with budget.lease() as lease:
            await lease.take(ROOM)

    with budget.lease() as first:
        await first.take(ROOM)
        leaving, staying = asyncio.create_task(hold()), asyncio.create_task(hold())
        await asyncio.sleep(0)
        leaving.cancel()
        first.settle(0)  # grants it its turn before it hears that it was cancelled
        await asyncio.gather(leaving, staying, return_exceptions=True)
        assert leaving.cancelled()
        assert staying.exception() is None
    assert budget.held == 0


async def test_a_larger_request_than_the_budget_is_all_of_it() -> None:
    budget = ByteBudget(ROOM, LONG)
    with budget.lease() as huge:
        await huge.take(5 * ROOM)
        assert huge.held == budget.held == ROOM
        huge.settle(SMALL)
        assert budget.held == SMALL
    assert budget.held == 0


async def test_bodies_are_counted_as_they_are_read_and_as_they_were_expanded() -> None:
    budget = ByteBudget(ROOM, 0.01)
    whole = bytes(3 * SMALL)

    async def read(body: bytes, piece: int, **headers: bytes) -> int:
        messages = [
            {"type": "http.request", "body": body[at : at + piece], "more_body": at + piece < len(body)}
            for at in range(0, len(body), piece)
        ]

        async def receive() -> dict[str, object]:
            return messages.pop(0)

        with budget.lease() as lease:
            pairs = [(name.encode().replace(b"_", b"-"), value) for name, value in headers.items()]
            await read_body(receive, pairs, 100 * SMALL, 9 * SMALL, lease)
            return lease.held

    assert await read(whole[:SMALL], SMALL) == 0
    assert await read(whole, len(whole)) == len(whole)
    assert 2 * SMALL <= await read(whole, SMALL) <= len(whole)
    assert await read(gzip.compress(whole), SMALL, content_encoding=b"gzip") == len(whole)
    with budget.lease() as holding:
        await holding.take(9 * SMALL)
        with pytest.raises(Overloaded):
            await read(gzip.compress(whole), SMALL, content_encoding=b"gzip")
    assert budget.held == 0
