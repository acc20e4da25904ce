"""The arithmetic of paired runs. Pure functions and frozen values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Spread", "best_rival", "median", "paired_ratios", "spread"]


def median(values: Sequence[float]) -> float:
    """The middle of *values*, or the mean of the middle two. ValueError for none."""
    if not values:
        raise ValueError("no values have no median")
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of one thing: the least, the middle, the most."""

    low: float
    middle: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The spread of *values*. ValueError for none."""
    middle = median(values)
    return Spread(min(values), middle, max(values))


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours by theirs, round by round. Rounds that one side did not finish (an interruption) do not count."""
    if any(value <= 0 for value in theirs):
        raise ValueError("a rate of zero or less is no rate")
    return [mine / yours for mine, yours in zip(ours, theirs, strict=False)]


def best_rival(rates: Mapping[str, Sequence[float]]) -> str:
    """The name of the rival with the highest median. ValueError for none."""
    if not rates:
        raise ValueError("nobody to be best")
    return max(rates, key=lambda name: median(rates[name]))
