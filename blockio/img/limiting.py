"""A rate limit for long copies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

__all__ = ["RateLimit"]


class RateLimit:
    """Lets through *rate* bytes a second, on average from the first one on; 0 lets everything through.

    Requests are let through whole and in the order they come; one that is larger than a second's worth is waited for by
    the next. Cancelling a wait takes nothing. ``rate`` may be changed meanwhile, from any thread: who waits goes on at
    the new one, at once.

    Invariant: ``_debt`` is how many of the bytes that were let through had not had their time at ``_counted``.
    """

    def __init__(
        self,
        rate: int,
        *,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[object]] | None = None,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep or self._wait
        self._turn = asyncio.Lock()
        self._debt = 0.0
        self._counted = 0.0
        self._wake: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def rate(self) -> int:
        """Bytes a second."""
        return self._rate

    @rate.setter
    def rate(self, rate: int) -> None:
        self._rate = rate
        waiting = self._wake
        if waiting is not None:
            loop, changed = waiting
            with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
                loop.call_soon_threadsafe(changed.set)

    async def take(self, nbytes: int) -> None:
        """Wait until *nbytes* may go on."""
        if self._rate <= 0:
            return
        async with self._turn:
            clock = self._clock or asyncio.get_running_loop().time
            rate = self._rate
            while True:
                now = clock()
                self._debt = max(0.0, self._debt - (now - self._counted) * rate)
                self._counted = now
                rate = self._rate
                if rate <= 0 or self._debt < 1:
                    break
                await self._sleep(self._debt / rate)
            self._debt += nbytes

    async def _wait(self, seconds: float) -> None:
        """*seconds*, or until the rate changes."""
        changed = asyncio.Event()
        self._wake = asyncio.get_running_loop(), changed
        try:
            async with asyncio.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            pass
        finally:
            self._wake = None
