"""Reference counts in a refcount block, of any width from 1 to 64 bits.

Stands on the *Host cluster management* section of QEMU's ``docs/interop/qcow2.txt``: a block is one cluster of
entries, ``1 << refcount_order`` bits each; entries below a byte are packed from the least significant bit up, wider
ones are big-endian. A pure codec over any writable buffer, with one pair of functions for each width, chosen once
by ``RefcountCodec.of``.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["MAX_REFCOUNT_ORDER", "RefcountCodec"]

MAX_REFCOUNT_ORDER: Final = 6

_TYPECODES: Final = {3: "B", 4: "H", 5: "I", 6: "Q"}
_SWAP: Final = sys.byteorder == "little"
_IS_ONE: Final = bytes(value == 1 for value in range(256))


class RefcountCodec:
    """Reads and writes refcounts of one width. Immutable; ``RefcountCodec.of(order)`` shares one for each width."""

    __slots__ = ("bits", "get", "maximum", "order", "put")

    get: Callable[[bytes | bytearray | memoryview, int], int]
    """``get(block, index)``: one refcount. *block* is bytes-like of format ``B``."""
    put: Callable[[bytearray | memoryview, int, int], None]
    """``put(block, index, value)``: store one refcount; the caller keeps *value* within ``maximum``."""

    def __init__(self, order: int) -> None:
        if not 0 <= order <= MAX_REFCOUNT_ORDER:
            raise ValueError(f"refcount order {order} is not within 0..6")
        self.order = order
        self.bits = 1 << order
        self.maximum = (1 << self.bits) - 1
        self.get, self.put = _packed(order) if order < 3 else _wide(1 << (order - 3))

    @staticmethod
    @cache
    def of(order: int) -> RefcountCodec:
        """The codec for entries of ``1 << order`` bits. ValueError for an order above 6."""
        return RefcountCodec(order)

    def entries(self, nbytes: int) -> int:
        """How many refcounts *nbytes* of a block hold."""
        return (nbytes * 8) >> self.order

    def last_used(self, block: bytes | bytearray) -> int:
        """The index of the last refcount that is not 0; -1 where there is none."""
        last = len(block.rstrip(b"\0")) - 1
        return (last * 8 + block[last].bit_length() - 1) >> self.order if last >= 0 else -1

    def decode(self, block: Buffer) -> array[int]:
        """All refcounts of *block* at once: an array of bytes for widths up to 8 bits, else of the width itself."""
        if self.order < 3:
            return array("B", _unpack(bytes(block), self.order))
        values = array(_TYPECODES[self.order])
        values.frombytes(block)
        if _SWAP:
            values.byteswap()
        return values

    def low_bytes(self, block: bytes | bytearray) -> bytes:
        """The refcounts of *block*, one byte each; 255 stands for 255 and more."""
        if self.order < 3:
            return _unpack(bytes(block), self.order)
        width = 1 << (self.order - 3)
        low = bytes(block[width - 1 :: width])
        if any(block[place::width].strip(b"\0") for place in range(width - 1)):
            low = bytes(255 if value > 255 else value for value in self.decode(block))
        return low

    def ones(self, block: bytes | bytearray) -> bytes:
        """For each refcount of *block* a byte: 1 where it is 1, else 0."""
        return self.low_bytes(block).translate(_IS_ONE)

    def raised(self, block: bytes | bytearray, where: bytes, weight: int) -> bytes:
        """*block* with *weight* (which may be below 0) added to each refcount whose byte in *where* is 1; others are 0.

        OverflowError where a refcount would not fit, or fall below 0.
        """
        if abs(weight) > self.maximum:
            raise OverflowError(f"no refcount can change by {weight}")
        # All of them at once, as one large integer. A sum that does not fit shows in its highest bit as a carry.
        counts = int.from_bytes(block, "big")
        change = abs(weight) * int.from_bytes(self._spread(where), "big")
        if weight >= 0:
            total = counts + change
            carries = counts & change | (counts | change) & ~total
        else:
            total = counts - change
            carries = ~counts & change | (~counts | change) & total
        if carries & _highest_bits(self.order, len(block)):
            raise OverflowError(f"a refcount cannot change by {weight}")
        return total.to_bytes(len(block), "big")

    def _spread(self, low: bytes) -> bytes:
        """The block whose refcounts are the bytes in *low*."""
        if self.order < 3:
            return _pack(low, self.order)
        width = 1 << (self.order - 3)
        block = bytearray(len(low) * width)
        block[width - 1 :: width] = low
        return bytes(block)

    def encode(self, values: array[int]) -> bytes:
        """The block whose refcounts are *values*; OverflowError where one does not fit.

        ValueError where they do not fill whole bytes.
        """
        if self.order < 3:
            if len(values) % (8 >> self.order):
                raise ValueError(f"{len(values)} refcounts of {self.bits} bits do not fill whole bytes")
            if len(values) and max(values) > self.maximum:
                raise OverflowError(f"a refcount exceeds {self.maximum}")
            return _pack(bytes(values) if values.typecode == "B" else bytes(array("B", values)), self.order)
        wide = array(_TYPECODES[self.order], values)
        if _SWAP:
            wide.byteswap()
        return wide.tobytes()


def _wide(
    width: int,
) -> tuple[
    Callable[[bytes | bytearray | memoryview, int], int],
    Callable[[bytearray | memoryview, int, int], None],
]:
    if width == 1:

        def get_byte(block: bytes | bytearray | memoryview, index: int) -> int:
            return block[index]

        def put_byte(block: bytearray | memoryview, index: int, value: int) -> None:
            block[index] = value

        return get_byte, put_byte

    from_bytes = int.from_bytes

    def get(block: bytes | bytearray | memoryview, index: int) -> int:
        at = index * width
        return from_bytes(block[at : at + width], "big")

    def put(block: bytearray | memoryview, index: int, value: int) -> None:
        at = index * width
        block[at : at + width] = value.to_bytes(width, "big")

    return get, put


def _packed(
    order: int,
) -> tuple[
    Callable[[bytes | bytearray | memoryview, int], int],
    Callable[[bytearray | memoryview, int, int], None],
]:
    # 2^per entries share a byte; entry 0 of a byte holds its least significant bits.
    per = 3 - order
    inner = (1 << per) - 1
    mask = (1 << (1 << order)) - 1

    def get(block: bytes | bytearray | memoryview, index: int) -> int:
        return (block[index >> per] >> ((index & inner) << order)) & mask

    def put(block: bytearray | memoryview, index: int, value: int) -> None:
        if value & ~mask:
            raise OverflowError(f"refcount {value} exceeds {mask}")
        at = index >> per
        shift = (index & inner) << order
        block[at] = (block[at] & ~(mask << shift) & 0xFF) | (value << shift)

    return get, put


@cache
def _spread(order: int) -> tuple[bytes, ...]:
    """For every byte value the refcounts it holds, first one first."""
    mask = (1 << (1 << order)) - 1
    return tuple(bytes((byte >> shift) & mask for shift in range(0, 8, 1 << order)) for byte in range(256))


def _unpack(block: bytes, order: int) -> bytes:
    return b"".join(map(_spread(order).__getitem__, block))


@cache
def _highest_bits(order: int, nbytes: int) -> int:
    """A block of *nbytes*, as one integer, in which only the highest bit of each refcount is set."""
    if order < 3:
        pattern = bytes((sum(1 << bit for bit in range((1 << order) - 1, 8, 1 << order)),))
    else:
        pattern = b"\x80".ljust(1 << (order - 3), b"\0")
    return int.from_bytes(pattern * (nbytes // len(pattern)), "big")


def _pack(raw: bytes, order: int) -> bytes:
    # One strided slice for each place in the byte, put together as big integers: no loop over entries.
    per = 8 >> order
    total = 0
    for place in range(per):
        total |= int.from_bytes(raw[place::per], "little") << (place << order)
    return total.to_bytes(len(raw) // per, "little")
