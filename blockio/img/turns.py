"""Taking turns: things that are ready in any order, done in that of their numbers."""

from __future__ import annotations

import asyncio

__all__ = ["Turns"]


class Turns:
    """Numbers from 0 on, each waited for by one task at most and passed on by it. Whose turn is over may go on.

    Invariant: ``_next`` is the number whose turn it is; who waits has a later one.
    """

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def wait(self, number: int) -> None:
        """Until all earlier numbers were passed on. Cancelled, its turn never ends: all that follow must go, too."""
        if self._next < number:
            turn = self._waiting[number] = asyncio.get_running_loop().create_future()
            await turn

    def pass_on(self, number: int) -> None:
        """*number*'s turn is over. The next one's first step comes after this one's: the loop is fair."""
        if self._next != number:
            return
        self._next = number + 1
        turn = self._waiting.pop(number + 1, None)
        if turn is not None and not turn.done():
            turn.set_result(None)
