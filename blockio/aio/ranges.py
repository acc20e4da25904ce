"""RangeLocks: intervals that exclude each other.

Pure asyncio: one loop, no I/O. Used wherever two coroutines may not be in the same bytes (or clusters) at once.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from contextlib import AbstractAsyncContextManager
from types import TracebackType

__all__ = ["RangeHold", "RangeLocks"]


class RangeHold(AbstractAsyncContextManager["RangeHold", None]):
    """One interval, wanted or held: ``start`` to ``end`` (not included). Made by ``RangeLocks`` only."""

    __slots__ = ("_blockers", "_followers", "_locks", "_order", "_waiter", "end", "exclusive", "start")

    def __init__(self, locks: RangeLocks, start: int, end: int, exclusive: bool, order: int) -> None:
        self.start = start
        self.end = end
        self.exclusive = exclusive
        self._locks = locks
        self._order = order
        self._blockers = 0
        self._followers: list[RangeHold] = []
        self._waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        kind = "exclusive" if self.exclusive else "shared"
        return f"<RangeHold {self.start}..{self.end} {kind} blockers={self._blockers}>"

    def release(self) -> None:
        """Let go, and let those go on who waited for this one only. RuntimeError where it was let go before."""
        self._locks._remove(self)
        for follower in self._followers:
            follower._blockers -= 1
            if follower._blockers == 0 and follower._waiter is not None and not follower._waiter.done():
                follower._waiter.set_result(None)
        self._followers.clear()

    async def _granted(self) -> None:
        try:
            while self._blockers:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
        except BaseException:
            self.release()
            raise
        finally:
            self._waiter = None

    async def __aenter__(self) -> RangeHold:
        await self._granted()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.release()


class RangeLocks:
    """Holds on intervals: exclusive ones overlap nothing, shared ones overlap only shared ones.

    Fair: whoever comes later waits for everybody earlier it conflicts with, held or waiting, so nobody starves and
    requests that overlap run in the order they came. Whoever is cancelled while waiting leaves no trace. Holding one
    interval while waiting for another can deadlock as with any lock; take them in ascending order.

    Invariant: a hold's ``_blockers`` is the number of earlier holds it conflicts with and that are still in
    ``_holds``; it is granted exactly when that is 0. ``_longest`` is at least the length of every hold in there, so
    the holds that overlap an interval start within ``_longest`` before it: looking costs what lies there, not all.
    """

    def __init__(self) -> None:
        self._holds: list[tuple[int, int, RangeHold]] = []
        self._longest = 0
        self._order = 0

    def __len__(self) -> int:
        """How many holds there are, granted or waiting."""
        return len(self._holds)

    def hold(self, start: int, nbytes: int, *, exclusive: bool = True) -> RangeHold:
        """``async with locks.hold(start, nbytes):`` holds it inside. It queues *now*, in the order of the calls.

        The result must be entered (or released). ValueError for an empty or negative interval.
        """
        if start < 0 or nbytes <= 0:
            raise ValueError(f"cannot lock {nbytes} bytes at {start}")
        end = start + nbytes
        hold = RangeHold(self, start, end, exclusive, self._order)
        self._order += 1
        for other in self.overlapping(start, nbytes):
            if exclusive or other.exclusive:
                other._followers.append(hold)
                hold._blockers += 1
        insort(self._holds, (start, hold._order, hold))
        self._longest = max(self._longest, nbytes)
        return hold

    def try_hold(self, start: int, nbytes: int, *, exclusive: bool = True) -> RangeHold | None:
        """The hold if nobody is in the way, else None. Never waits; end it with ``release``."""
        if self.conflicts(start, nbytes, exclusive=exclusive):
            return None
        return self.hold(start, nbytes, exclusive=exclusive)

    async def acquire(self, start: int, nbytes: int, *, exclusive: bool = True) -> RangeHold:
        """Wait for the interval and hold it until ``release``. Cancelled while waiting: nothing is held."""
        hold = self.hold(start, nbytes, exclusive=exclusive)
        await hold._granted()
        return hold

    def conflicts(self, start: int, nbytes: int, *, exclusive: bool = True) -> bool:
        """Whether a hold asked for now would have to wait."""
        if not self._holds:
            return False
        return any(exclusive or other.exclusive for other in self.overlapping(start, nbytes))

    def overlapping(self, start: int, nbytes: int) -> list[RangeHold]:
        """The holds, granted or waiting, that share a byte with the interval; by their start."""
        end = start + nbytes
        first = bisect_left(self._holds, (start - self._longest,))
        last = bisect_left(self._holds, (end,))
        return [hold for _, _, hold in self._holds[first:last] if hold.end > start]

    def _remove(self, hold: RangeHold) -> None:
        at = bisect_left(self._holds, (hold.start, hold._order))
        if at == len(self._holds) or self._holds[at][2] is not hold:
            raise RuntimeError(f"{hold!r} is not held")
        del self._holds[at]
        if not self._holds:
            self._longest = 0
