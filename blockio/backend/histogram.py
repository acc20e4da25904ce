"""Latency histograms with the caller's boundaries (QEMU's block-latency-histogram-set)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

__all__ = ["LatencyHistogram"]


class LatencyHistogram:
    """How many requests took how long.

    Invariant: ``boundaries`` (nanoseconds) are positive and strictly ascending; ``bins`` has one more: the first counts
    what took less than the first boundary, the last what took at least the last one, each other what took at least the
    boundary before it and less than the one behind it.
    """

    __slots__ = ("bins", "boundaries")

    def __init__(self, boundaries: Sequence[int]) -> None:
        """Empty. ValueError for boundaries that are not positive whole numbers of nanoseconds in ascending order."""
        last = 0
        for boundary in boundaries:
            if boundary <= last:
                raise ValueError(
                    f"latency boundaries are positive nanoseconds in ascending order, not {list(boundaries)}"
                )
            last = boundary
        if not boundaries:
            raise ValueError("a latency histogram needs at least one boundary")
        self.boundaries = tuple(boundaries)
        self.bins = [0] * (len(boundaries) + 1)

    def add(self, latency_ns: int) -> None:
        """One request took that long."""
        self.bins[bisect_right(self.boundaries, latency_ns)] += 1
