"""Counting what is done, and what is waited for, for whoever watches."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, ParamSpec, TypeVar

import msgspec

from blockio.img.results import Observer, Progress, Side

__all__ = ["Counting", "Meter"]

P = ParamSpec("P")
R = TypeVar("R")

_WINDOW: Final = 0.25
"""Seconds over which what is waited for is judged."""
_BUSY: Final = 0.75
"""A process that computes for that part of the time is itself what there is to wait for."""


class Counting:
    """An observer who wants to know how much is done, and not what is waited for: finding that out costs a little."""

    __slots__ = ("_observer",)

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def __call__(self, progress: Progress) -> object:
        return self._observer(progress)


class Meter:
    """Turns bytes done and still to do into ``Progress`` for an observer; without one it costs next to nothing.

    What is waited for is known from ``timed`` functions; *otherwise* is the answer where none of them took any time and
    the process was not busy. *clock* tells the time, *busy* for how long this process has computed, both in seconds.

    Invariant: ``done`` never shrinks and never exceeds ``total``.
    """

    __slots__ = ("_before", "_clock", "_observer", "_started", "_waits", "done", "total")

    def __init__(
        self,
        observer: Observer | None,
        total: int,
        *,
        otherwise: Side | None = None,
        clock: Callable[[], float] = time.monotonic,
        busy: Callable[[], float] = time.process_time,
    ) -> None:
        self._observer = observer
        self._clock = clock
        self._waits = None if observer is None or isinstance(observer, Counting) else _Waits(clock, busy, otherwise)
        self._started = clock()
        self._before = self.done = 0
        self.total = total

    def timed(self, side: Side, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """*function*, noticing how long *side* takes for it; *function* itself where nobody asks."""
        return function if self._waits is None else self._waits.timed(side, function)

    def waited(self, side: Side, seconds: float) -> None:
        """*side* took that long for something that ``timed`` could not see."""
        if self._waits is not None:
            self._waits.waited(side, seconds)

    def advance(self, nbytes: int) -> None:
        """*nbytes* more are done."""
        self.done += nbytes
        self._tell()

    def reach(self, done: int) -> None:
        """*done* bytes are done in all."""
        self.done = done
        self._tell()

    def forgo(self, nbytes: int) -> None:
        """*nbytes* of the total need not be done."""
        self.total -= nbytes

    def start(self) -> None:
        """Tell that nothing is done yet."""
        self._tell()

    def resume(self, done: int) -> None:
        """*done* bytes had been done before, which tells nothing about the rate."""
        self._before = self.done = done
        self._tell()

    def finish(self) -> None:
        """Everything is done."""
        self.done = self.total
        self._tell(last=True)

    def _tell(self, *, last: bool = False) -> None:
        if self._observer is None:
            return
        elapsed = self._clock() - self._started
        rate = (self.done - self._before) / elapsed if elapsed > 0 else 0.0
        remaining = (self.total - self.done) / rate if rate > 0 else None
        side = None if self._waits is None else self._waits.altogether() if last else self._waits.lately()
        self._observer(Progress(self.done, self.total, rate, remaining, side))


class _Moment(msgspec.Struct, frozen=True):
    """What the clocks showed, and how long each side had been waited for by then."""

    at: float
    busy: float
    waited: dict[Side, float]


class _Waits:
    """How long each side was waited for. Several requests wait at once, so the sums mean something beside each other
    only."""

    __slots__ = ("_busy", "_clock", "_first", "_latest", "_otherwise", "_side", "_waited")

    def __init__(self, clock: Callable[[], float], busy: Callable[[], float], otherwise: Side | None) -> None:
        self._clock = clock
        self._busy = busy
        self._otherwise = otherwise
        self._waited = dict.fromkeys(Side, 0.0)
        self._side: Side | None = None
        self._first = self._latest = self._now()

    def timed(self, side: Side, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """See ``Meter.timed``."""
        clock, waited = self._clock, self._waited

        async def noticed(*args: P.args, **kwargs: P.kwargs) -> R:
            began = clock()
            try:
                return await function(*args, **kwargs)
            finally:
                waited[side] += clock() - began

        return noticed

    def waited(self, side: Side, seconds: float) -> None:
        """See ``Meter.waited``."""
        self._waited[side] += seconds

    def lately(self) -> Side | None:
        """What was waited for in the last window that is over."""
        if self._clock() - self._latest.at >= _WINDOW:
            now = self._now()
            self._side = self._between(self._latest, now)
            self._latest = now
        return self._side

    def altogether(self) -> Side | None:
        """What was waited for from the beginning on."""
        return self._between(self._first, self._now())

    def _now(self) -> _Moment:
        return _Moment(self._clock(), self._busy(), self._waited.copy())

    def _between(self, before: _Moment, after: _Moment) -> Side | None:
        if after.busy - before.busy >= _BUSY * (after.at - before.at):
            return Side.WORK
        longest = max(after.waited, key=lambda side: after.waited[side] - before.waited[side])
        return longest if after.waited[longest] > before.waited[longest] else self._otherwise
