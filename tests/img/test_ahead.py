"""Work begun ahead: answers and failures come in order, and nothing is left under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from blockio.img.ahead import done_ahead


async def numbers(count: int, *, then: Exception | None = None) -> AsyncGenerator[int, None]:
    for number in range(count):
        yield number
    if then is not None:
        raise then


async def turns() -> None:
    """Enough turns of the loop for whoever can go on to go on."""
    for _ in range(20):
        await asyncio.sleep(0)


class Work:
    """Ends in the order that the test says, and knows what is under way."""

    def __init__(self) -> None:
        self.under_way: dict[int, asyncio.Future[str]] = {}
        self.most = 0

    async def __call__(self, number: int) -> str:
        self.under_way[number] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.under_way))
        try:
            return await self.under_way[number]
        finally:
            del self.under_way[number]

    async def settle(self, *order: int) -> None:
        for number in order:
            await turns()
            self.under_way[number].set_result(f"{number}")


async def test_answers_come_in_order_whoever_is_first_ready() -> None:
    work = Work()
    settling = asyncio.ensure_future(work.settle(2, 0, 1, 4, 3))
    assert [answer async for answer in done_ahead(numbers(5), work, 3)] == list("01234")
    assert work.most == 3
    await settling


async def test_a_failure_waits_for_what_is_before_it() -> None:
    async def work(number: int) -> int:
        if number == 2:
            raise ValueError(number)
        for _ in range(5 - number):
            await asyncio.sleep(0)
        return number

    for source in (numbers(9), numbers(2, then=ValueError(2))):
        answers = done_ahead(source, work, 4)
        assert [await anext(answers), await anext(answers)] == [0, 1]
        with pytest.raises(ValueError, match="2"):
            await anext(answers)


async def test_leaving_early_or_cancelled_waits_for_all() -> None:
    work = Work()
    async with aclosing(numbers(9)) as source, aclosing(done_ahead(source, work, 3)) as answers:
        settling = asyncio.ensure_future(work.settle(0))
        assert await anext(answers) == "0"
        assert set(work.under_way) == {1, 2}
        await settling
    assert not work.under_way
    async with aclosing(numbers(9)) as source:
        waiting = asyncio.ensure_future(anext(done_ahead(source, work, 3)))
        await turns()
        assert len(work.under_way) == 3
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert not work.under_way
