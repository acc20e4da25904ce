"""Where something lies in the file."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Area"]


class Area(NamedTuple):
    """*nbytes* from *offset*."""

    offset: int
    nbytes: int
