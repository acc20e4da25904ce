"""A set of bits that costs little where it is all clear or all set.

The bits are cut into chunks of 8192 or more, so that there are about 65536 chunks at most. Only a *mixed* chunk, which
has bits of both kinds, takes memory of its own; clear and full chunks are one bit each in a summary. The worst case
is as much memory as a plain bitmap and a few percent more.

Invariants:

* ``_mixed`` has bit *i* set exactly where ``_chunks`` has an entry *i*; that entry is neither 0 nor all ones.
* ``_full`` has bit *i* set exactly where all bits of chunk *i* that lie below ``size`` are set.
* No bit at or past ``size`` is set anywhere; ``count`` is how many bits are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Final

__all__ = ["SparseBits"]

_LEAST_SHIFT: Final = 13
_CHUNKS_SHIFT: Final = 16


def _lowest(bits: int) -> int:
    """The number of the lowest bit that is set; *bits* is not 0."""
    return (bits & -bits).bit_length() - 1


@cache
def _ones(shift: int) -> int:
    """A full chunk of that size: one for all who have it."""
    return (1 << (1 << shift)) - 1


class SparseBits:
    """Bits 0 to ``size`` (not included), all clear at first. ``start`` and ``stop`` are bit numbers everywhere.

    Chunks are Python integers: a copy of the whole shares them, and costs as much as the summary.
    """

    __slots__ = ("_chunks", "_full", "_mixed", "_ones", "_shift", "count", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0
        self._shift = max(_LEAST_SHIFT, (size - 1).bit_length() - _CHUNKS_SHIFT)
        self._ones = _ones(self._shift)
        self._chunks: dict[int, int] = {}
        self._mixed = 0
        self._full = 0

    @property
    def nbytes(self) -> int:
        """About how much memory the mixed chunks take."""
        return len(self._chunks) << (self._shift - 3)

    def copy(self) -> SparseBits:
        """The same bits, changing independently from now on."""
        twin = SparseBits(0)
        twin.size, twin.count = self.size, self.count
        twin._shift, twin._ones = self._shift, self._ones
        twin._chunks, twin._mixed, twin._full = dict(self._chunks), self._mixed, self._full
        return twin

    # -- chunks

    def _whole(self, index: int) -> int:
        """Chunk *index* with all bits set that it can have."""
        left = self.size - (index << self._shift)
        return self._ones if left >> self._shift else (1 << max(left, 0)) - 1

    def _get(self, index: int) -> int:
        found = self._chunks.get(index)
        if found is not None:
            return found
        return self._whole(index) if self._full >> index & 1 else 0

    def _put(self, index: int, old: int, new: int) -> None:
        """Chunk *index*, which was *old*, is *new*."""
        self.count += new.bit_count() - old.bit_count()
        was_mixed = index in self._chunks
        if new and new != self._whole(index):
            self._chunks[index] = new
            if not was_mixed:  # the summaries cost more than the chunk
                self._mixed |= 1 << index
                if old:
                    self._full ^= 1 << index
            return
        if was_mixed:
            del self._chunks[index]
            self._mixed ^= 1 << index
        elif old:
            self._full ^= 1 << index
        if new:
            self._full |= 1 << index

    # -- changing

    def set(self, start: int, stop: int) -> None:
        """Set the bits from *start* to *stop*."""
        self._change(start, stop, on=True)

    def reset(self, start: int, stop: int) -> None:
        """Clear the bits from *start* to *stop*."""
        self._change(start, stop, on=False)

    def _change(self, start: int, stop: int, *, on: bool) -> None:
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"bits {start} to {stop} of {self.size}")
        if start == stop:
            return
        shift = self._shift
        mask = (1 << shift) - 1
        first, last = start >> shift, (stop - 1) >> shift
        if first == last:
            self._change_part(first, start & mask, stop - (first << shift), on=on)
            return
        if start & mask:
            self._change_part(first, start & mask, 1 << shift, on=on)
            first += 1
        if stop & mask and stop < self.size:
            self._change_part(last, 0, stop & mask, on=on)
            last -= 1
        if first <= last:
            self._change_whole(first, last + 1, on=on)

    def _change_part(self, index: int, low: int, high: int, *, on: bool) -> None:
        bits = ((1 << (high - low)) - 1) << low
        old = self._get(index)
        new = old | bits if on else old & ~bits
        if new != old:
            self._put(index, old, new)

    def _change_whole(self, first: int, stop: int, *, on: bool) -> None:
        span = ((1 << (stop - first)) - 1) << first
        mixed = self._mixed & span
        self._mixed ^= mixed
        while mixed:
            index = _lowest(mixed)
            mixed &= mixed - 1
            self.count -= self._chunks.pop(index).bit_count()
        changed = span & ~self._full if on else span & self._full
        bits = changed.bit_count() << self._shift
        end = -(-self.size >> self._shift)
        if changed >> (end - 1) & 1:  # the last chunk may be a short one
            bits -= (end << self._shift) - self.size
        self.count += bits if on else -bits
        self._full ^= changed

    def update(self, other: SparseBits) -> None:
        """Set all bits that *other*, of the same size, has set. ValueError for another size."""
        if other.size != self.size:
            raise ValueError(f"{other.size} bits into {self.size}")
        if other._shift != self._shift:  # one of them has changed its size
            for start, stop in other.runs():
                self.set(start, stop)
            return
        for index, theirs in list(other._chunks.items()):
            old = self._get(index)
            if old | theirs != old:
                self._put(index, old, old | theirs)
        full = other._full & ~self._full
        while full:
            first = _lowest(full)
            length = _lowest(~(full >> first))
            self._change_whole(first, first + length, on=True)
            full &= ~(((1 << length) - 1) << first)

    def resize(self, size: int) -> None:
        """Change the size. New bits are clear, those past a smaller size are gone."""
        if size < self.size:
            self.reset(size, self.size)
        last = max(min(size, self.size) - 1, 0) >> self._shift
        edge = self._get(last)
        # What was a full chunk may be a part of one now, and the other way round.
        self._put(last, edge, 0)
        self.size = size
        self._put(last, 0, edge)

    # -- looking

    def __getitem__(self, bit: int) -> bool:
        return bool(self._get(bit >> self._shift) >> (bit & ((1 << self._shift) - 1)) & 1)

    def next_set(self, start: int, stop: int) -> int | None:
        """The first bit from *start* on, below *stop*, that is set."""
        if start >= min(stop, self.size):
            return None
        index = start >> self._shift
        here = self._get(index) >> (start & ((1 << self._shift) - 1))
        if here:
            found = start + _lowest(here)
        else:
            ahead = (self._mixed | self._full) >> (index + 1)
            if not ahead:
                return None
            index += 1 + _lowest(ahead)
            found = (index << self._shift) + _lowest(self._get(index))
        return found if found < stop else None

    def next_clear(self, start: int, stop: int) -> int | None:
        """The first bit from *start* on, below *stop* and ``size``, that is clear."""
        stop = min(stop, self.size)
        if start >= stop:
            return None
        index = start >> self._shift
        here = (self._whole(index) & ~self._get(index)) >> (start & ((1 << self._shift) - 1))
        if here:
            found = start + _lowest(here)
        else:
            index += 1 + _lowest(~self._full >> (index + 1))
            found = (index << self._shift) + _lowest(~self._get(index))
        return found if found < stop else None

    def runs(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """(start, stop) of each run of bits that are set. Bits changed behind the last run seen are seen too."""
        stop = self.size if stop is None else min(stop, self.size)
        while (first := self.next_set(start, stop)) is not None:
            start = self.next_clear(first, stop) or stop
            yield first, start

    # -- as bytes: bit n is bit n % 8 of byte n // 8

    def to_bytes(self, start: int, stop: int) -> bytes:
        """The bits from *start*, a multiple of 8, to *stop*. Bits past ``size`` are zeroes."""
        shift = self._shift
        parts = []
        while start < stop:
            index = start >> shift
            low = start & ((1 << shift) - 1)
            high = min(1 << shift, stop - (index << shift))
            bits = self._get(index) >> low & ((1 << (high - low)) - 1)
            parts.append(bits.to_bytes((high - low + 7) >> 3, "little"))
            start = (index << shift) + high
        return b"".join(parts)

    def from_bytes(self, start: int, data: bytes | bytearray | memoryview) -> None:
        """Make the bits from *start*, a multiple of 8, what *data* says. What it says past ``size`` is ignored."""
        shift = self._shift
        stop = min(start + len(data) * 8, self.size)
        at = 0
        while start < stop:
            index = start >> shift
            low = start & ((1 << shift) - 1)
            high = min(1 << shift, stop - (index << shift))
            ones = (1 << (high - low)) - 1
            nbytes = (high - low + 7) >> 3
            bits = int.from_bytes(data[at : at + nbytes], "little") & ones
            old = self._get(index)
            self._put(index, old, old & ~(ones << low) | bits << low)
            start = (index << shift) + high
            at += nbytes
