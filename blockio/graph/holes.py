"""What files say of their data and holes, remembered for as long as one look at many of their places takes."""

from __future__ import annotations

from bisect import bisect_right
from itertools import compress, count, repeat
from operator import add, le, not_
from typing import TYPE_CHECKING, Final

from blockio.types import INT_MAX, StatusFlags

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blockio.driver.child import Child

__all__ = ["Holes", "look_below"]

_EOF: Final = int(StatusFlags.EOF)
_ZERO: Final = int(StatusFlags.ZERO)
_SECTOR: Final = 512
_AHEAD: Final = INT_MAX & -_SECTOR
_NEVER: Final = 1 << 63
_NEAR: Final = 256 << 20
_MOST: Final = 1 << 16
"""Stretches that are remembered of a file: some 10 MiB."""


class Holes:
    """Of the files below one node. Made by whoever looks at a whole disk, and handed to each of the look's steps.

    Good for one state of the node, and bounded: ``begin`` forgets it all when there is another, or too much is known.
    """

    __slots__ = ("_files", "_generation")

    def __init__(self) -> None:
        self._files: dict[Child, Stretches] = {}
        self._generation = -1

    def begin(self, generation: int) -> None:
        """A step of the look begins, in *generation* of the node's content: only what is true of it stays known."""
        if generation != self._generation or any(len(known) > _MOST for known in self._files.values()):
            self._files.clear()
            self._generation = generation

    def of(self, child: Child) -> Stretches:
        """What is known of the file behind *child*."""
        known = self._files.get(child)
        return known if known is not None else self._files.setdefault(child, Stretches(child))


class Stretches:
    """A file's stretches of data and of holes, as far as they are known: in order, none overlaps another."""

    __slots__ = ("_child", "_ends", "_flags", "_starts")

    def __init__(self, child: Child) -> None:
        self._child = child
        self._starts: list[int] = []
        self._ends: list[int] = [0]
        """Of those that start in ``_starts``, behind one that is nowhere: ``bisect_right`` finds a place's own."""
        self._flags: list[int] = [0]
        """``ZERO`` for a hole, else 0."""

    def __len__(self) -> int:
        return len(self._starts)

    def flags(self, offsets: list[int], lengths: list[int]) -> list[int | None]:
        """The flags of places; None for one that is not in one stretch, or is not known."""
        first = bisect_right(self._starts, min(offsets))
        if max(offsets) + max(lengths) <= self._ends[first]:  # often all are in one
            return [self._flags[first]] * len(offsets)
        at = list(map(bisect_right, repeat(self._starts), offsets))
        flags: list[int | None] = list(map(self._flags.__getitem__, at))
        inside = list(map(le, map(add, offsets, lengths), map(self._ends.__getitem__, at)))
        if not all(inside):
            for index in compress(count(), map(not_, inside)):
                flags[index] = None
        return flags

    def parts(self, offset: int, nbytes: int) -> list[tuple[int, int, int]]:
        """A place in pieces of one kind each: offset, length, flags. Empty where not all of it is known."""
        end = offset + nbytes
        found = []
        at = bisect_right(self._starts, offset)
        while offset < end:
            if at == len(self._ends) or not (at and self._starts[at - 1] <= offset < self._ends[at]):
                return []
            here = min(self._ends[at], end) - offset
            found.append((offset, here, self._flags[at]))
            offset += here
            at += 1
        return found

    async def learn(self, places: Iterable[tuple[int, int]]) -> None:
        """Find out about all *places*, (offset, length): afterwards ``parts`` knows each of them."""
        for offset, nbytes in sorted(places):
            at, end = offset, offset + nbytes
            back = _NEAR
            while at < end:
                index = bisect_right(self._starts, at)
                known = self._ends[index]
                if at < known:
                    at = known
                    continue
                # From where knowledge ends if that is near, so that no gaps are left for other places to fall into.
                begin, back = (known if at - known < back else at), 0
                known_again = self._starts[index] if index < len(self._starts) else _NEVER
                ahead = min(max(end, self._child.length) - begin, _AHEAD)
                more, reach = await look_below(self._child, begin, 0, ahead)
                reached = min(begin + max(reach, _SECTOR), known_again)
                if index and begin == known and self._flags[index] == more:
                    self._ends[index] = reached
                else:
                    self._starts.insert(index, begin)
                    self._ends.insert(index + 1, reached)
                    self._flags.insert(index + 1, more)


async def look_below(child: Child, host_offset: int, flags: int, length: int) -> tuple[int, int]:
    """Metadata may say DATA where the file has a hole (preallocation): look. Failing to look changes nothing."""
    try:
        below = await child.co_block_status(host_offset, length, want_zero=True)
    except OSError:
        return flags, length
    if below.flags & _EOF and (not below.length or below.flags & _ZERO):
        return flags | _ZERO, length  # a format may reach past the end of its file, and reads zeroes there
    return flags | (int(below.flags) & _ZERO), below.length
