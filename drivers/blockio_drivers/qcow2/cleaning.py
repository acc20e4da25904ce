"""Memory that is not needed any more: every so often the caches let go of what nobody used meanwhile.

Invariant: ``_timer`` is set exactly between ``start`` and ``stop`` when the interval is not 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from blockio.aio.clock import Clock, Timer

__all__ = ["CacheCleaner"]


class CacheCleaner:
    """Calls *clean* every so many seconds, in the loop that ``start`` was called in."""

    def __init__(self, clean: Callable[[], None]) -> None:
        self._clean = clean
        self._timer: Timer | None = None

    def start(self, clock: Clock, interval: int) -> None:
        """From now on, every *interval* seconds; 0: not at all. What ran before ends."""
        self.stop()
        if interval:
            self._timer = clock.call_later(interval, lambda: self._tick(clock, interval))

    def stop(self) -> None:
        """No more calls; does nothing where none would come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self, clock: Clock, interval: int) -> None:
        self._clean()
        self.start(clock, interval)
