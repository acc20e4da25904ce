"""How long requests took: percentiles and a histogram. Pure functions over nanoseconds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import ceil
from typing import Final

import msgspec

__all__ = ["BOUNDS", "PERCENTS", "Latency", "percentile", "summed_up"]

PERCENTS: Final = (50.0, 90.0, 99.0, 99.9, 99.99)

BOUNDS: Final = tuple(
    round(10**power * step) for power in range(2, 10) for step in (1, 1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.3, 8)
)
"""Nanoseconds, ten a decade, from a tenth of a microsecond to some seconds."""


class Latency(msgspec.Struct, frozen=True):
    """The latencies of one pass, in nanoseconds. ``bins`` has one more than ``bounds``, as QEMU's histograms do."""

    count: int
    least: int
    mean: float
    most: int
    percentiles: dict[str, int]
    """By percent, ``"99.9"``."""
    bounds: tuple[int, ...]
    bins: tuple[int, ...]


def percentile(ordered: Sequence[int], percent: float) -> int:
    """The least of *ordered* (ascending) that *percent* of all do not exceed. ValueError for none, or no percent."""
    if not ordered:
        raise ValueError("no values have no percentiles")
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent} is no percentage")
    # Rounded first: 99.9 of 1000 values is the 999th, whatever binary fractions make of it.
    return ordered[max(ceil(round(percent * len(ordered) / 100, 6)), 1) - 1]


def summed_up(values: Sequence[int], bounds: Sequence[int] = BOUNDS) -> Latency:
    """What there is to say of *values*. ValueError for none."""
    ordered = sorted(values)
    bins = [0] * (len(bounds) + 1)
    for value in ordered:
        bins[bisect_right(bounds, value)] += 1
    return Latency(
        len(ordered),
        percentile(ordered, 0),
        sum(ordered) / len(ordered),
        ordered[-1],
        {f"{percent:g}": percentile(ordered, percent) for percent in PERCENTS},
        tuple(bounds),
        tuple(bins),
    )
