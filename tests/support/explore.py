"""How far a run looks: a test run, or ``make explore``."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

__all__ = ["exploring", "few"]


def exploring() -> bool:
    """Whether this is ``make explore``, which has time."""
    return settings().max_examples > 100


def few(examples: int, *, part: int = 1, **more: Any) -> settings:
    """For a test whose examples cost much: so many *examples* in a test run; one *part* of all in ``make explore``."""
    return settings(max_examples=settings().max_examples // part if exploring() else examples, **more)
