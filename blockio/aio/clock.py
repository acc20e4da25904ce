"""Time, as something that can be handed in: tests turn it by hand instead of sleeping."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "LoopClock", "ManualClock", "Timer"]


class Timer(Protocol):
    """A call that will come."""

    def cancel(self) -> None:
        """It shall not come. Does nothing after it came."""


class Clock(Protocol):
    """Monotonic seconds, and calls and sleepers in the future."""

    def now(self) -> float:
        """Seconds since some fixed moment; never goes back."""

    def call_later(self, delay: float, fn: Callable[[], object]) -> Timer:
        """Call *fn* in the running loop *delay* seconds from now."""

    async def sleep(self, delay: float) -> None:
        """Come back *delay* seconds from now; the loop gets its turn even for 0."""


class LoopClock:
    """The running loop's own time."""

    def now(self) -> float:
        """The loop's monotonic time."""
        return asyncio.get_running_loop().time()

    def call_later(self, delay: float, fn: Callable[[], object]) -> Timer:
        """By the loop's own timer."""
        return asyncio.get_running_loop().call_later(delay, fn)

    async def sleep(self, delay: float) -> None:
        """``asyncio.sleep``."""
        await asyncio.sleep(delay)


class _ManualTimer:
    __slots__ = ("fn",)

    def __init__(self, fn: Callable[[], object]) -> None:
        self.fn: Callable[[], object] | None = fn

    def cancel(self) -> None:
        self.fn = None


class ManualClock:
    """A clock that stands still until ``advance`` turns it.

    Invariant: every timer in ``_timers`` is due later than ``now()``, or was set with no delay since the last turn.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._timers: list[tuple[float, int, _ManualTimer]] = []
        self._order = 0

    def now(self) -> float:
        """What ``advance`` has added up to."""
        return self._now

    def call_later(self, delay: float, fn: Callable[[], object]) -> Timer:
        """Due in the ``advance`` that reaches it; equal times in the order they were set."""
        timer = _ManualTimer(fn)
        heapq.heappush(self._timers, (self._now + max(delay, 0.0), self._order, timer))
        self._order += 1
        return timer

    async def sleep(self, delay: float) -> None:
        """Until ``advance`` reaches it. Cancellation takes the timer with it."""
        woken = asyncio.get_running_loop().create_future()
        timer = self.call_later(delay, lambda: None if woken.done() else woken.set_result(None))
        try:
            await woken
        finally:
            timer.cancel()

    def advance(self, seconds: float) -> None:
        """Turn the clock, calling what comes due on the way, each at its own time."""
        until = self._now + seconds
        while self._timers and self._timers[0][0] <= until:
            due, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, due)
            if timer.fn is not None:
                timer.fn()
        self._now = until
