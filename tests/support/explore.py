"""How far a run looks: a test run, or ``make explore``."""

from __future__ import annotations

from hypothesis import settings

__all__ = ["exploring"]


def exploring() -> bool:
    """Whether this is ``make explore``, which has time."""
    return settings().max_examples > 100
