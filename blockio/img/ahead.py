"""Work that is begun before its turn and ends in it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

__all__ = ["done_ahead"]

T = TypeVar("T")
R = TypeVar("R")


async def done_ahead(items: AsyncIterator[T], work: Callable[[T], Awaitable[R]], depth: int) -> AsyncGenerator[R, None]:
    """What *work* answers for each of *items*, in their order, while it is under way for up to *depth* of them.

    What *items* or *work* raise comes in its turn, after all that is before it. Close the iterator (``aclosing``):
    then, and when it is cancelled, everything under way is cancelled and waited for.
    """
    under_way: deque[asyncio.Future[R]] = deque()
    failure: Exception | None = None
    more = True
    try:
        while True:
            while more and len(under_way) < depth:
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    more = False
                except Exception as error:
                    more, failure = False, error
                else:
                    under_way.append(asyncio.ensure_future(work(item)))
            if not under_way:
                break
            yield await under_way[0]
            under_way.popleft()
        if failure is not None:
            raise failure
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
