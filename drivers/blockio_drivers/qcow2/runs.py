"""Finding runs of free and used clusters in a part of a refcount block: pure, and fast where they are long."""

from __future__ import annotations

from functools import cache

from blockio_drivers.qcow2.refcounts import RefcountCodec

__all__ = ["FreeRuns"]


class FreeRuns:
    """For refcounts of one width: how far zeroes, or counts other than zero, reach."""

    __slots__ = ("_get", "_order", "_width")

    def __init__(self, order: int) -> None:
        self._order = order
        self._width = max(1, (1 << order) >> 3)
        self._get = RefcountCodec.of(order).get

    def free_at(self, block: bytearray, index: int, end: int) -> int:
        """How many refcounts from *index* on, below *end*, are zero."""
        get = self._get
        at = index
        while at < end and not get(block, at):
            bit = at << self._order
            if not bit & 7:
                zeroes = _leading_zeroes(block, bit >> 3, (end << self._order) >> 3)
                at += max((zeroes * 8) >> self._order, 1)
            else:
                at += 1
        return min(at, end) - index

    def used_at(self, block: bytearray, index: int, end: int) -> int:
        """How many refcounts from *index* on, below *end*, are not zero."""
        if self._order < 3:
            return self._packed_used_at(block, index, end)
        width = self._width
        stop = end * width
        zero = bytes(width)
        at = block.find(zero, index * width, stop)
        while at >= 0 and at % width:  # the end of one count and the beginning of the next
            at = block.find(zero, at + 1, stop)
        return (at // width if at >= 0 else end) - index

    def _packed_used_at(self, block: bytearray, index: int, end: int) -> int:
        get = self._get
        at = index
        while at < end and get(block, at):
            bit = at << self._order
            if bit & 7:
                at += 1
                continue
            # Whole bytes without a zero in them are passed at once.
            start = bit >> 3
            rest = block[start : (end << self._order) >> 3].translate(_holds_zero(self._order))
            full = rest.find(b"\1")
            full = len(rest) if full < 0 else full
            at += max((full * 8) >> self._order, 1)
        return min(at, end) - index


def _leading_zeroes(data: bytearray, start: int, end: int) -> int:
    """How many bytes of *data* from *start* on, below *end*, are zero."""
    at = start
    step = 64
    while at < end:
        part = data[at : min(at + step, end)]
        left = part.lstrip(b"\0")
        at += len(part) - len(left)
        if left:
            break
        step *= 4
    return at - start


@cache
def _holds_zero(order: int) -> bytes:
    """A translation: 1 for a byte in which some refcount is zero, else 0."""
    get = RefcountCodec.of(order).get
    return bytes(any(not get(bytes((byte,)), place) for place in range(8 >> order)) for byte in range(256))
