"""Accounting: how many requests, how many bytes, how they ended, how long they took.

Stands on the system *accounting* of the reference document. There the devices fill the statistics of a backend; here a
backend has callers instead of devices, so it counts by itself: each read, write (zeroes and compressed ones too), flush
and discard (``unmap``), in every form, when it ends. A device that merges requests before it sends them, or refuses one
that never reaches the backend, says so with ``merge_done`` and ``invalid``.

**What it costs.** Counting is on always: two integer additions for a request in the fast lane. Time is taken only when
asked for (``set_timing``, an interval or a histogram): two looks at the clock add about a third to what the backend
costs a cached read, which the suite ``backend`` of ``make bench`` measures. All figures of time speak of the requests
that began while it is on, in both lanes, which is what makes them comparable.

A request that was cancelled is counted nowhere: it neither succeeded nor failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from blockio.errors import OutOfRange

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.backend.histogram import LatencyHistogram
    from blockio.backend.statistics import Statistics

__all__ = [
    "FAIRNESS_BUDGET",
    "REQUEST_COST",
    "STARTED_LOOK",
    "STARTED_RUN",
    "Accounting",
    "Counters",
    "Kind",
    "TryTransfer",
]

TryTransfer: TypeAlias = "Callable[[int, Sequence[Buffer], int], bool]"
Kind: TypeAlias = Literal["read", "write", "flush", "unmap"]


FAIRNESS_BUDGET: Final = 4 << 20
"""After requests of this weight completed inline, a backend gives the loop a turn: about a millisecond."""

REQUEST_COST: Final = 8 << 10
"""What a request weighs besides its bytes, so that small requests are counted by their number."""

STARTED_RUN: Final = 16
"""How many requests in a row that had to be started show that the fast lane declines whatever comes (3 us each)."""

STARTED_LOOK: Final = 256
"""After so many started requests the fast lane is asked again."""


class Counters:
    """The counts of one kind of request since the accounting began; they only grow.

    ``bytes`` and ``operations`` are those of requests that succeeded; ``time_ns`` is the time of ``timed`` requests.
    ``weight`` is what these requests weighed, each its bytes and REQUEST_COST: one addition tells both the bytes and
    when the loop is to have its turn, which is when it gets past ``due``. Nor does the fast lane count what it timed:
    that is all operations while time is taken, but for what ``_untimed`` makes up for. ``started`` are the requests
    that were started, ``landed`` those of them that are operations.
    """

    __slots__ = (
        "_otherwise",
        "_stopped",
        "_untimed",
        "due",
        "failed",
        "histogram",
        "invalid",
        "kind",
        "landed",
        "merged",
        "operations",
        "started",
        "time_ns",
        "weight",
    )

    def __init__(self, kind: Kind) -> None:
        self.kind: Kind = kind
        self.operations = 0
        self.weight = 0
        self.due = FAIRNESS_BUDGET
        self.failed = 0
        self.invalid = 0
        self.merged = 0
        self.started = 0
        self.landed = 0
        self._otherwise = 0
        self.time_ns = 0
        self._untimed = 0
        self._stopped: int | None = 0  # how many operations there were when time was last taken; None: it is now
        self.histogram: LatencyHistogram | None = None

    @property
    def bytes(self) -> int:
        """How many bytes the requests had that succeeded."""
        return self.weight - REQUEST_COST * self.operations

    @property
    def timed(self) -> int:
        """How many requests ``time_ns`` speaks of."""
        return (self.operations if self._stopped is None else self._stopped) - self._untimed

    def only_started(self) -> bool:
        """Asked after each STARTED_RUN started requests: whether there were no others since, so that asking the fast
        lane is in vain. Now and then the answer is no, lest nobody notice that it has become of use."""
        before, self._otherwise = self._otherwise, self.operations - self.landed
        return before == self._otherwise and self.started % STARTED_LOOK != 0

    def timing(self, on: bool) -> None:
        """Operations that are counted from now on are timed ones, or no longer."""
        if on and self._stopped is not None:
            self._untimed += self.operations - self._stopped
            self._stopped = None
        elif not on and self._stopped is None:
            self._stopped = self.operations

    def was_timed(self, timed: bool) -> None:
        """An operation that was just counted was timed or not, whatever is done by now."""
        if timed is not (self._stopped is None):
            self._untimed += -1 if timed else 1

    def failed_timed(self) -> None:
        """A request that is no operation was timed."""
        self._untimed -= 1


class _Interval:
    """The averages of one interval; *seconds* long."""

    __slots__ = ("averages", "seconds")

    def __init__(self, seconds: int, clock: Callable[[], int]) -> None:
        self.seconds = seconds
        from blockio.backend.averages import TimedAverage  # few are asked for any

        kinds: tuple[Kind, ...] = ("read", "write", "flush", "unmap")
        self.averages = {kind: TimedAverage(seconds * 1_000_000_000, clock) for kind in kinds}


class Accounting:
    """The accounting of one backend or one node; ``blk.stats``. Touched only in its owner's thread.

    ``account_invalid`` and ``account_failed`` say whether such requests count for the idle time (and failed ones for
    the times) as well, as QEMU's ``stats-account-`` options do; both are on.
    """

    __slots__ = (
        "_intervals",
        "account_failed",
        "account_invalid",
        "clock",
        "flush",
        "lanes_changed",
        "last_access_ns",
        "read",
        "timing",
        "unmap",
        "write",
    )

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """Nothing counted yet, time not taken. *clock* answers nanoseconds and never goes back."""
        self.clock = clock
        self.read = Counters("read")
        self.write = Counters("write")
        self.flush = Counters("flush")
        self.unmap = Counters("unmap")
        self.account_invalid = True
        self.account_failed = True
        self.lanes_changed: Callable[[], object] = _nobody
        """The owner's: whether time is taken has changed."""
        self.timing = False
        """Whether time is taken now; see ``set_timing``."""
        self.last_access_ns = 0
        self._intervals: list[_Interval] = []

    # -- what is asked for

    def set_timing(self, on: bool) -> None:
        """Take the time of the requests that begin from now on, or no longer; what was measured stays."""
        self.timing = on
        for counters in (self.read, self.write, self.flush, self.unmap):
            counters.timing(on)
        self.lanes_changed()

    def add_interval(self, seconds: int) -> None:
        """Keep averages over the last *seconds* from now on (QEMU's stats-intervals); begins to take time.

        ValueError for an interval that is not a positive whole number of seconds, or is kept already.
        """
        if seconds <= 0:
            raise ValueError(f"Invalid interval length: {seconds}")
        if any(interval.seconds == seconds for interval in self._intervals):
            raise ValueError(f"Duplicated interval length: {seconds}")
        self._intervals.append(_Interval(seconds, self.clock))
        self.set_timing(True)

    def set_histogram(self, boundaries: Sequence[int] | None, *kinds: Kind) -> None:
        """Count latencies between *boundaries* (ns) anew, for *kinds* or for all; None: no longer.

        Begins to take time. ValueError, and nothing changed, for boundaries that are not ascending.
        """
        from blockio.backend.histogram import LatencyHistogram  # few are asked for one

        chosen = [self.counters(kind) for kind in kinds or ("read", "write", "flush", "unmap")]
        made = [None if boundaries is None else LatencyHistogram(boundaries) for _ in chosen]
        for counters, histogram in zip(chosen, made, strict=True):
            counters.histogram = histogram
        self.set_timing(self.timing or boundaries is not None)

    def counters(self, kind: Kind) -> Counters:
        """The counts of *kind*. ValueError for what is none."""
        if kind not in {"read", "write", "flush", "unmap"}:
            raise ValueError(f"no kind of request: {kind!r}")
        counters: Counters = getattr(self, kind)
        return counters

    # -- what happens

    def begin(self) -> int:
        """When a request that begins now began, for ``ended``; 0 while no time is taken."""
        return self.clock() if self.timing else 0

    def ended(self, counters: Counters, nbytes: int, began: int, error: BaseException | None) -> None:
        """A request that began at *began* is over: well, or with *error*."""
        if error is None:
            counters.operations += 1
            counters.weight += nbytes + REQUEST_COST
            counters.was_timed(bool(began))
            if began:
                self.took(counters, began, self.clock())
        elif isinstance(error, OutOfRange):
            self.invalid(counters.kind)
        elif isinstance(error, OSError):
            counters.failed += 1
            if began and self.account_failed:
                counters.failed_timed()
                self.took(counters, began, self.clock())

    def invalid(self, kind: Kind) -> None:
        """A request was refused before it began: it does not fit the disk (``block_acct_invalid``)."""
        self.counters(kind).invalid += 1
        if self.timing and self.account_invalid:
            self.last_access_ns = self.clock()

    def merge_done(self, kind: Kind, count: int) -> None:
        """A device put *count* requests into others before it sent those (``block_acct_merge_done``)."""
        if count < 0:
            raise ValueError(f"{count} merged requests")
        self.counters(kind).merged += count

    def took(self, counters: Counters, began: int, now: int) -> None:
        """A request that is timed began at *began* and ended at *now*."""
        counters.time_ns += now - began
        self.last_access_ns = now
        if counters.histogram is not None:
            counters.histogram.add(now - began)
        for interval in self._intervals:
            interval.averages[counters.kind].add(now - began)

    def detailed(self, counters: Counters) -> bool:
        """Whether more than sums is kept of the times."""
        return counters.histogram is not None or bool(self._intervals)

    def timed_lane(self, lane: TryTransfer, counters: Counters) -> TryTransfer:
        """*lane*, a fast lane, with its time taken; whoever calls it counts. *lane* itself while no time is taken."""
        if not self.timing:
            return lane
        clock, took = self.clock, self.took
        detailed = self.detailed(counters)

        def timed(offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
            began = clock()
            if not lane(offset, bufs, nbytes):
                return False
            now = clock()
            if detailed:
                took(counters, began, now)
            else:  # the same by hand: a call would cost as much as looking at the clock
                counters.time_ns += now - began
                self.last_access_ns = now
            return True

        return timed

    # -- what it shows

    def idle_time_ns(self) -> int | None:
        """Nanoseconds since the last request ended; None before the first, or while no time is taken."""
        if not self.timing or not self.last_access_ns:
            return None
        return self.clock() - self.last_access_ns

    def snapshot(self, name: str = "") -> Statistics:
        """All of it as it is now, frozen; see ``blockio.backend.statistics``."""
        from blockio.backend.statistics import freeze  # only who looks needs the frozen forms

        return freeze(self, self._intervals, name)


def _nobody() -> None:
    return None
