"""A rate limit for long copies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["RateLimit"]


class RateLimit:
    """Lets through *rate* bytes a second, on average from the first one on. ``rate`` may be changed meanwhile.

    Requests are let through whole and in the order they come; one that is larger than a second's worth is waited for by
    the next. Cancelling a wait takes nothing.
    """

    def __init__(
        self,
        rate: int,
        *,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.rate = rate
        self._clock = clock
        self._sleep = sleep
        self._free_at: float | None = None

    async def take(self, nbytes: int) -> None:
        """Wait until *nbytes* may go on. A rate of 0 lets everything through."""
        if self.rate <= 0:
            return
        clock = self._clock or asyncio.get_running_loop().time
        now = clock()
        begin = now if self._free_at is None else max(now, self._free_at)
        self._free_at = begin + nbytes / self.rate
        if begin > now:
            await self._sleep(begin - now)
