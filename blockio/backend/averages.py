"""Averages over the last while (QEMU's timed averages), in constant memory.

Two windows of one *period* each run half a period apart. The older one answers, so that an answer always covers the
last half of a period at least, and a whole one at most.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["TimedAverage"]


class _Window:
    __slots__ = ("began", "count", "ends", "least", "most", "total")

    def __init__(self, began: int, ends: int) -> None:
        self.restart(began, ends)

    def restart(self, began: int, ends: int) -> None:
        self.began = began
        self.ends = ends
        self.least = self.most = self.total = self.count = 0


class TimedAverage:
    """Minimum, maximum, mean and sum of the values of the last *period*; times and values are nanoseconds.

    Invariant: the windows end half a period apart, and neither has ended when it is looked at.
    """

    __slots__ = ("_clock", "_period", "_windows")

    def __init__(self, period: int, clock: Callable[[], int]) -> None:
        now = clock()
        self._clock = clock
        self._period = period
        self._windows = (_Window(now, now + period), _Window(now, now + period + period // 2))

    def add(self, value: int) -> None:
        """A value of now."""
        self._current()
        for window in self._windows:
            if not window.count or value < window.least:
                window.least = value
            window.most = max(window.most, value)
            window.total += value
            window.count += 1

    def _current(self) -> _Window:
        now = self._clock()
        for window in self._windows:
            if now >= window.ends:
                ends = window.ends + ((now - window.ends) // self._period + 1) * self._period
                window.restart(ends - self._period, ends)
        first, second = self._windows
        return first if first.ends < second.ends else second

    def minimum(self) -> int:
        """The least value, 0 without any."""
        return self._current().least

    def maximum(self) -> int:
        """The greatest value, 0 without any."""
        return self._current().most

    def mean(self) -> int:
        """The mean value, 0 without any."""
        window = self._current()
        return window.total // window.count if window.count else 0

    def sum_per_time(self) -> float:
        """The sum of all values over the time they cover: for latencies, how many were under way on average."""
        window = self._current()
        elapsed = self._clock() - window.began
        return window.total / elapsed if elapsed > 0 else 0.0
