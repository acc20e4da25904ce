"""Many words of a table looked at in one step: side by side in one large integer, each is a lane of its own.

A loop of Python takes some 60 ns for a word, the integers less than 20. Pure: tables are only looked at.
"""

from __future__ import annotations

import sys
from array import array
from functools import cache
from itertools import compress
from typing import Final

__all__ = ["LANES", "any_shown", "run_length", "run_starts", "shifted"]

_FEW: Final = 16
"""So many words are looked at one by one: most runs end sooner, and a large integer has its price."""
LANES: Final = 8192
"""Lanes of the largest integer."""
_SWAP: Final = sys.byteorder == "big"


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
    expected += step
    count = _FEW
    if after < stop and table[stop - 1] & mask == expected + (stop - 1 - after) * step:
        # Most likely all of them are: from the first again, because a whole table has the length of the lanes.
        after, expected, count = at, table[at] & mask, LANES
    while after < stop:
        count = min(count * 4, stop - after, LANES)
        ones, masks, steps = _lanes(mask, step)
        first = expected
        if count < LANES:
            left_out = LANES - count
            ones, masks, steps = (lanes >> 64 * left_out for lanes in (ones, masks, steps))
            first -= left_out * step
        wrong = (_number(table[after : after + count]) & masks) ^ (first * ones + steps)
        if wrong:
            return after - at + (((wrong & -wrong).bit_length() - 1) >> 6)
        after += count
        expected += count * step
    return stop - at


def run_starts(table: array[int], at: int, stop: int, mask: int, step: int) -> list[int]:
    """Where each word from *at* to *stop* is that is not *step* more than the one before, as far as *mask* shows.

    For where many are. Every 8192 words one counts as such. What *mask* shows must stay below 2**64 - *step*.
    """
    starts: list[int] = []
    for first in range(at, stop, LANES):
        count = min(LANES, stop - first)
        ones, masks, _ = _lanes(mask, step)
        if count < LANES:
            ones >>= 64 * (LANES - count)
        words = _number(table[first : first + count]) & masks
        # 0 where a run goes on; what the last word leads to is one lane too many.
        other = _words(words ^ ((words << 64) + step * ones), count + 1)
        other[0] = 1
        starts += compress(range(first, first + count), other)
    return starts


def any_shown(table: array[int], mask: int) -> bool:
    """Whether *mask* shows anything of any word of *table*."""
    _, masks, _ = _lanes(mask, 0)
    return any(_number(table[first : first + LANES]) & masks for first in range(0, len(table), LANES))


def shifted(table: array[int], mask: int, bits: int) -> array[int]:
    """What *mask* shows of each word of *table*, moved down by *bits*, all of which are 0."""
    _, masks, _ = _lanes(mask, 0)
    found = array("Q")
    for first in range(0, len(table), LANES):
        part = table[first : first + LANES]
        found += _words((_number(part) & masks) >> bits, len(part))
    return found


@cache
def _lanes(mask: int, step: int) -> tuple[int, int, int]:
    """Lanes that all hold 1, that all hold *mask*, and that hold no *step*, one, two, from the lowest on."""
    ones = _number(array("Q", [1]) * LANES)
    return ones, mask * ones, step * _number(array("Q", range(LANES)))


def _number(words: array[int]) -> int:
    """*words* as one integer, the first of them its lowest lane."""
    return int.from_bytes(words[::-1] if _SWAP else words, sys.byteorder)


def _words(number: int, count: int) -> array[int]:
    """The *count* lanes of *number* from the lowest on."""
    words = array("Q", number.to_bytes(count * 8, sys.byteorder))
    return words[::-1] if _SWAP else words
