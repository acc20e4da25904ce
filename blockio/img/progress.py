"""Counting what is done, for whoever watches."""

from __future__ import annotations

import time

from blockio.img.results import Observer, Progress

__all__ = ["Meter"]


class Meter:
    """Turns bytes done and still to do into ``Progress`` for an observer; without one it costs next to nothing.

    Invariant: ``done`` never shrinks and never exceeds ``total``.
    """

    __slots__ = ("_observer", "_started", "done", "total")

    def __init__(self, observer: Observer | None, total: int) -> None:
        self._observer = observer
        self._started = time.monotonic()
        self.done = 0
        self.total = total

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

    def finish(self) -> None:
        """Everything is done."""
        self.done = self.total
        self._tell()

    def _tell(self) -> None:
        if self._observer is None:
            return
        elapsed = time.monotonic() - self._started
        rate = self.done / elapsed if elapsed > 0 else 0.0
        remaining = (self.total - self.done) / rate if rate > 0 else None
        self._observer(Progress(self.done, self.total, rate, remaining))
