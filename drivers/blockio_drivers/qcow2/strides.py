"""Many words of a table looked at in one step: side by side in one large integer, each is a lane of its own.

A loop of Python takes some 60 ns for a word, the integers less than 20. Pure: tables are only looked at.
"""

from __future__ import annotations

from array import array
from functools import cache
from itertools import compress
from typing import Final

from blockio_drivers.qcow2.tables import table_to_bytes

__all__ = ["run_length", "run_starts"]

_FEW: Final = 16
"""So many words are looked at one by one: most runs end sooner, and a large integer has its price."""
_MOST: Final = 8192
"""Lanes of the largest integer."""


def run_length(table: array[int], at: int, stop: int, mask: int, step: int) -> int:
    """How many words from *at* on, before *stop*, are each *step* more than the one before, as far as *mask* shows.

    What *mask* shows of the first must stay below 2**64 when all steps are added.
    """
    expected = table[at] & mask
    after = at + 1
    few = min(stop, at + _FEW)
    while after < few:
        expected += step
        if table[after] & mask != expected:
            return after - at
        after += 1
    count = _FEW
    while after < stop:
        count = min(count * 4, stop - after, _MOST)
        ones, masks, steps = (lanes >> 64 * (_MOST - count) for lanes in _lanes(mask, step))
        wrong = (_number(table[after : after + count]) & masks) ^ (expected * ones + steps)
        if wrong:
            return after - at + count - 1 - ((wrong.bit_length() - 1) >> 6)
        after += count
        expected += count * step
    return after - at


def run_starts(table: array[int], at: int, stop: int, mask: int, step: int) -> list[int]:
    """Where each word from *at* to *stop* is that is not *step* more than the one before, as far as *mask* shows.

    For where many are. Every 8192 words one counts as such. What *mask* shows must stay below 2**64 - *step*.
    """
    starts: list[int] = []
    for first in range(at, stop, _MOST):
        count = min(_MOST, stop - first)
        ones, masks, _ = (lanes >> 64 * (_MOST - count) for lanes in _lanes(mask, step))
        words = _number(table[first : first + count]) & masks
        other = array("Q")  # the words, in whatever order of their bytes, are 0 where a run goes on
        other.frombytes((words ^ ((words >> 64) + step * ones)).to_bytes(count * 8, "big"))
        other[0] = 1
        starts += compress(range(first, first + count), other)
    return starts


@cache
def _lanes(mask: int, step: int) -> tuple[int, int, int]:
    """Lanes that all hold 1, that all hold *mask*, and that hold one *step*, two, three, from the highest on."""
    ones = _number(array("Q", [1]) * _MOST)
    return ones, mask * ones, step * _number(array("Q", range(1, _MOST + 1)))


def _number(words: array[int]) -> int:
    """*words* as one integer, the first of them its highest lane."""
    return int.from_bytes(table_to_bytes(words), "big")
